"""Plans: whose, for which values, and what is read from them."""

import psycopg
import pytest

from crafely.db import plans, query
from crafely.store import __all__ as nouns  # importing the store registers its statements
from tests.db.statements import statement

assert nouns


def state(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "select current_user, current_setting('plan_cache_mode'),"
        " coalesce(current_setting('crafely.user_id', true), ''),"
        " (select count(*) from pg_prepared_statements where name like 'crafely%'), (select count(*) from agents)"
    ).fetchall()


def test_a_plan_is_the_role_s_and_leaves_nothing(superuser: psycopg.Connection) -> None:
    before = state(superuser)

    plan = plans.explain(superuser, query.statements["agents/get"])

    assert "current_setting('crafely.user_id'" in str(plan.json)
    assert "$2" in str(plan.json)
    assert state(superuser) == before


def test_a_plan_for_values_has_them_in_it(superuser: psycopg.Connection) -> None:
    plan = plans.explain(superuser, query.statements["agents/get"], values=["agnt_'1", "alice"])

    assert "agnt_''1" in str(plan.json)
    assert "$2" not in str(plan.json)


def test_null_is_a_value(superuser: psycopg.Connection) -> None:
    assert plans.explain(superuser, query.statements["packages/get"], values=[None]).json["Plan"]


def test_analyzing_a_write_leaves_nothing(superuser: psycopg.Connection) -> None:
    create = query.statements["agents/create"]
    values = {"id": "agnt_a", "name": "a", "instructions": "b", "tools": "[]", "context": None, "user_id": "alice"}
    before = state(superuser)

    plan = plans.explain(
        superuser, create, values=[values[name] for name in create.parameters], user_id="alice", analyze=True
    )

    assert plan.json["Plan"]["Actual Rows"] == 1
    assert "Shared Hit Blocks" in plan.json["Plan"]
    assert state(superuser) == before


def test_a_role_without_rights_is_refused_and_nothing_is_left(superuser: psycopg.Connection) -> None:
    before = state(superuser)

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        plans.explain(superuser, query.statements["agents/get"], "crafely_monitor")

    assert state(superuser) == before


def test_within_a_transaction_it_goes_on(superuser: psycopg.Connection) -> None:
    with superuser.transaction():
        superuser.execute("create table more (id text primary key)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            plans.explain(superuser, statement("select id from more"), "crafely_app")
        superuser.execute("grant select on more to crafely_app")
        assert plans.explain(superuser, statement("select id from more"), "crafely_app").tables == ("more",)


@pytest.mark.parametrize(
    ("text", "indexes", "scans"),
    [
        ("select * from packages where id = $1", ["packages_pkey"], []),
        ("select * from packages where features = $1", [], ["packages"]),
        # All of an index is all of the table, unless a limit ends it at once.
        ("select id from packages order by id", ["packages_pkey"], ["packages"]),
        ("select id from packages order by id limit 1", ["packages_pkey"], []),
        ("select id from packages where name || 'a' = $1 order by id limit 1", ["packages_pkey"], ["packages"]),
        (
            "select count(*) from (select id from packages order by id offset 0) p limit 1",
            ["packages_pkey"],
            ["packages"],
        ),
        # Partitions go by the name of what they are a part of.
        ("select id from usage where created_at <= $1 and id = $2", ["usage_pkey"], []),
        ("select max(cost) from usage", [], ["usage"]),
        ("insert into packages (name, price) values ($1, 1) on conflict (name) do nothing", ["packages_name_key"], []),
        ("delete from packages", [], ["packages"]),
        ("update packages set name = 'a' where id = $1", ["packages_pkey"], []),
    ],
)
def test_what_is_read(superuser: psycopg.Connection, text: str, indexes: list[str], scans: list[str]) -> None:
    # Which way is cheaper is not the matter here.
    superuser.execute(
        f"set enable_seqscan = {'off' if indexes else 'on'}; set enable_bitmapscan = off; set enable_sort = off"
    )

    plan = plans.explain(superuser, statement(text), superuser.info.user)

    assert (list(plan.indexes), list(plan.scans)) == (indexes, scans)
