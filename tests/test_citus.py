"""``sql/scale/citus.sql``: on a PostgreSQL with stand-ins for the functions of Citus, and on a cluster, if any.

CRAFELY_TEST_CITUS_URL names the coordinator's database, migrated and spread by the script; its login is a superuser.
"""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from crafely.db.citus import CitusDatabase
from crafely.db.session import Identity
from crafely.store import monitor, usage
from tests.store.test_usage import raw

SCRIPT = (Path(__file__).parents[1] / "sql" / "scale" / "citus.sql").read_text()
SPREAD = ["usage", "usage_daily", "usage_events"]
STAND_INS = """
    create table calls (number serial, call text);
    create function create_distributed_table(relation regclass, distribution_column text, colocate_with text default '')
        returns void language sql as $$
        insert into calls (call) values (concat_ws(' ', 'spread', relation, distribution_column, colocate_with)) $$;
    create function create_distributed_function(function regprocedure) returns void language sql as $$
        insert into calls (call) values (concat_ws(' ', 'function', function)) $$;
    create function truncate_local_data_after_distributing_table(function regclass) returns void language sql as $$
        insert into calls (call) values (concat_ws(' ', 'truncate', function)) $$;
"""
_UNIQUE = """
    select indexrelid::regclass from pg_index
    where indrelid = any(%s::regclass[]) and indisunique and pg_get_indexdef(indexrelid) not like '%%user_id%%'
"""
_SUBQUERIES = """
    select polname from pg_policy
    where polrelid = any(%s::regclass[])
        and concat(pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)) ilike '%%select%%'
"""
# Roles that go to shards see there only what is granted on the table: a grant of columns does not get there.
_BY_COLUMN = """
    select attrelid::regclass, attname, a.privilege_type from pg_attribute, aclexplode(attacl) a
    where attrelid = any(%s::regclass[]) and not has_table_privilege(a.grantee, attrelid, a.privilege_type)
"""
# What Citus would not take of these tables, or not pass on.
REFUSED = [
    "select tgname from pg_trigger where tgrelid = any(%s::regclass[]) and not tgisinternal",
    "select conname from pg_constraint where conrelid = any(%s::regclass[]) and contype = 'f'",
    "select conname from pg_constraint where confrelid = any(%s::regclass[])",
    _UNIQUE,
    _SUBQUERIES,
    _BY_COLUMN,
]
ALL = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


def run_script(connection: psycopg.Connection, script: str = SCRIPT) -> None:
    # Roles are the server's, which other tests share: nothing here needs them to log in.
    connection.execute("\n".join(line for line in script.splitlines() if not line.startswith("alter role")).encode())


@pytest.fixture
def spread(superuser: psycopg.Connection) -> psycopg.Connection:
    """A database that the script has been run on."""
    superuser.execute(STAND_INS.encode())
    superuser.execute("grant usage on sequence calls_number_seq to public")
    run_script(superuser)
    return superuser


@pytest.fixture
async def engine(spread: psycopg.Connection, database_url: str) -> AsyncIterator[CitusDatabase]:
    database = CitusDatabase(database_url, size=2, pool_timeout=30, statement_timeout=10)
    await database.open()
    yield database
    await database.close()


def test_what_is_spread_is_together(spread: psycopg.Connection) -> None:
    assert [call for (call,) in spread.execute("select call from calls order by number")] == [
        "function current_user_id()",
        "spread usage_daily user_id ",
        "spread usage_events user_id usage_daily",
        "spread usage user_id usage_daily",
        *(f"truncate {table}" for table in ("usage_daily", "usage_events", "usage")),
    ]


def test_nothing_is_left_that_citus_refuses(spread: psycopg.Connection) -> None:
    """Triggers, references to a local table, unique keys without the user, subqueries in policies."""
    for query in REFUSED:
        assert spread.execute(query.encode(), [SPREAD]).fetchall() == []
    key = "select pg_get_constraintdef(oid) from pg_constraint where conname = 'usage_pkey'"
    assert spread.execute(key.encode()).fetchone() == ("PRIMARY KEY (user_id, id, created_at)",)


async def test_recording_sums_and_months_go_on(engine: CitusDatabase, spread: psycopg.Connection) -> None:
    spread.execute(
        "insert into api_keys (id, user_id, key_id, hashed_key)"
        " values ('k_a', 'alice', 'a', 'h'), ('k_b', 'bob', 'b', 'h')"
    )
    spread.execute(b"drop table " + newest(spread).encode())

    await hold(engine, {"alice": "k_a", "bob": "k_b"})

    made = await monitor.ensure_partitions(engine.session("crafely_admin"), months_ahead=3)
    assert (made.usage, made.audit_log) == (1, 0)
    again = await monitor.ensure_partitions(engine.session("crafely_admin"), months_ahead=3)
    assert (again.usage, again.audit_log) == (0, 0)
    secured = "select relrowsecurity and relforcerowsecurity from pg_class where relname = %s"
    assert spread.execute(secured.encode(), [newest(spread)]).fetchone() == (True,)


def newest(connection: psycopg.Connection) -> str:
    """The last month of usage that there is."""
    row = connection.execute(
        "select max(relname::text) from pg_class where relname ~ '^usage_y[0-9]{4}m[0-9]{2}$' and relispartition"
    ).fetchone()
    assert row is not None
    return str(row[0])


async def hold(engine: CitusDatabase, keys: dict[str, str]) -> None:
    """Records for several users in one call, as who records for all; each of them sees his own, and sums of it."""
    meter = engine.session("crafely_meter")
    one = [
        {"user_id": user, "api_key_id": key, "currency": "usd", "event_id": "e", "tokens_in": 2}
        for user, key in keys.items()
    ]
    wrong = {"user_id": next(iter(keys)), "api_key_id": "of nobody"}
    told = await usage.record_distributed(meter, records=raw([*one, wrong]))
    assert [r.status for r in told] == [*("recorded" for _ in one), "unknown_key"]
    again = await usage.record_distributed(meter, records=raw(one))
    assert [(r.status, r.id) for r in again] == [("duplicate", r.id) for r in told[:-1]]
    for user in keys:
        session = engine.session("crafely_app", Identity(user))
        for asked in keys:
            sums = await usage.stats(
                session, user_id=asked, from_time=ALL[0], to_time=ALL[1], group_by=["provider"], take=10, skip=0
            )
            # Of another user row-level security shows nothing, whoever is asked for.
            assert [(s.records, s.tokens_in) for s in sums] == ([(1, 2)] if asked == user else [])


def test_it_refuses_to_run_twice(spread: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="spread over servers before"):
        run_script(spread)
    spread.rollback()


def test_it_refuses_a_database_without_citus(superuser: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has no Citus"):
        run_script(superuser)
    superuser.rollback()


def test_it_refuses_who_does_not_see_the_rows(superuser: psycopg.Connection) -> None:
    superuser.execute(STAND_INS.encode())
    superuser.execute("set role crafely_admin")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is no superuser"):
        run_script(superuser)
    superuser.rollback()


def test_rows_that_are_lost_on_the_way_undo_everything(superuser: psycopg.Connection) -> None:
    superuser.execute("insert into usage_events (user_id, event_id, usage_id) values ('a', 'e', 'u')")
    superuser.execute(STAND_INS.encode())
    superuser.execute(
        "create or replace function truncate_local_data_after_distributing_table(function regclass) returns void"
        " language sql as 'delete from usage_events'"
    )
    with pytest.raises(psycopg.errors.RaiseException, match="usage_events has 0 rows, and had 1"):
        run_script(superuser)
    superuser.rollback()
    assert superuser.execute("select count(*) from usage_events").fetchone() == (1,)


CLUSTER = os.environ.get("CRAFELY_TEST_CITUS_URL", "")


@pytest.mark.citus
@pytest.mark.skipif(not CLUSTER, reason="CRAFELY_TEST_CITUS_URL names no cluster")
async def test_on_a_cluster_all_of_it_holds() -> None:
    """Distribution, row-level security on the workers, recording, sums, and the months."""
    with psycopg.connect(CLUSTER, autocommit=True) as connection:
        found = connection.execute(
            "select table_name::text, distribution_column, colocation_id from citus_tables"
            " where table_name = any(%s::regclass[])",
            [SPREAD],
        ).fetchall()
        assert sorted(table for table, _, _ in found) == SPREAD
        assert {(column, group) for _, column, group in found} == {("user_id", found[0][2])}
        keys = {}
        for number in range(20):
            user, key = f"user {number} {uuid4()}", f"key_{uuid4()}"
            keys[user] = key
            connection.execute(
                "insert into api_keys (id, user_id, key_id, hashed_key) values (%s, %s, %s, 'h')",
                [key, user, uuid4().hex],
            )
        database = CitusDatabase(CLUSTER, size=4, pool_timeout=30, statement_timeout=30)
        await database.open()
        try:
            await hold(database, keys)
            await monitor.ensure_partitions(database.session("crafely_admin"), months_ahead=3)
        finally:
            await database.close()
        shards = connection.execute("select count(distinct nodename || nodeport) from citus_shards").fetchone()
        assert shards is not None
        assert shards[0] >= 1
