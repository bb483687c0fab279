"""The trail: one row for each change, with who, through which request, and only what changed."""

from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from crafely.db.session import Database, Identity, Session
from tests.db.statements import run, statement

ALICE = Identity("alice", "key_of_the_request", "request-1")

# A table, and statements that insert, update and delete the row with this id; what the update is seen to change.
STORY = [
    (
        "agents",
        "insert into agents (id, name, instructions, user_id) values ('row', 'old', '', 'alice')",
        "update agents set name = 'new', instructions = ''",
        ({"name": "old"}, {"name": "new"}),
    ),
    (
        "threads",
        "insert into threads (id, name, model, user_id) values ('row', 'n', null, 'alice')",
        "update threads set model = 'gpt-4', deleted_at = '2026-01-01Z'",
        ({"model": None, "deleted_at": None}, {"model": "gpt-4", "deleted_at": "2026-01-01T00:00:00+00:00"}),
    ),
    (
        "packages",
        "insert into packages (id, name, price) values ('row', 'n', 1)",
        "update packages set price = 2.50, features = '{a}'",
        ({"price": 1.00, "features": []}, {"price": 2.50, "features": ["a"]}),
    ),
    (
        "user_subscriptions",
        "insert into user_subscriptions (id, package_id, user_id) values ('row', 'pkg_1', 'alice')",
        "update user_subscriptions set status = 'cancelled'",
        ({"status": "active"}, {"status": "cancelled"}),
    ),
    (
        "api_keys",
        "insert into api_keys (id, key_id, hashed_key, user_id) values ('row', 'k', 'HASH', 'alice')",
        "update api_keys set hashed_key = 'HASH2', active = false",
        ({"hashed_key": "[secret]", "active": True}, {"hashed_key": "[secret]", "active": False}),
    ),
]


def trail(superuser: psycopg.Connection, table: str) -> list[dict[str, Any]]:
    found = superuser.execute("select to_jsonb(a) from audit_log a where table_name = %s order by id", [table])
    return [row for (row,) in found.fetchall()]


@pytest.mark.parametrize(("table", "insert", "update", "changed"), STORY, ids=[story[0] for story in STORY])
def test_each_change_leaves_one_row_with_what_changed(
    superuser: psycopg.Connection, table: str, insert: str, update: str, changed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    if table == "user_subscriptions":
        superuser.execute("insert into packages (id, name, price) values ('pkg_1', 'n', 1)")
    superuser.execute("set timezone = 'UTC'")
    stored = []
    whole = SQL("select to_jsonb(t) from {} t").format(Identifier(table))
    for change in (insert.encode(), update.encode(), SQL("delete from {}").format(Identifier(table))):
        with superuser.transaction():
            superuser.execute("select set_config('crafely.user_id', 'alice', true)")
            superuser.execute("select set_config('crafely.api_key_id', 'key_1', true)")
            superuser.execute("select set_config('crafely.request_id', 'request-1', true)")
            superuser.execute(change)
        stored += superuser.execute(whole).fetchall()

    inserted, updated, deleted = trail(superuser, table)

    assert [row["action"] for row in (inserted, updated, deleted)] == ["insert", "update", "delete"]
    for row in (inserted, updated, deleted):
        assert (row["actor_user_id"], row["actor_api_key_id"], row["request_id"]) == ("alice", "key_1", "request-1")
        assert row["row_id"] == "row"
        assert row["user_id"] == (None if table == "packages" else "alice")
        assert "HASH" not in str(row)
    secret = {"hashed_key": "[secret]"} if table == "api_keys" else {}
    assert (inserted["old"], inserted["new"]) == (None, {**stored[0][0], **secret})
    assert (updated["old"], updated["new"]) == changed
    assert (deleted["old"], deleted["new"]) == ({**stored[1][0], **secret}, None)


@pytest.mark.parametrize(("table", "insert", "update", "_"), STORY, ids=[story[0] for story in STORY])
def test_an_update_that_changes_nothing_leaves_no_row(
    superuser: psycopg.Connection, table: str, insert: str, update: str, _: object
) -> None:
    superuser.execute("insert into packages (id, name, price) values ('pkg_1', 'other', 1)")
    superuser.execute(insert.encode())
    before = trail(superuser, table)
    stamps = SQL("select updated_at from {}").format(Identifier(table))
    stamp = superuser.execute(stamps).fetchall()

    superuser.execute(SQL("update {} set id = id, created_at = created_at").format(Identifier(table)))

    assert trail(superuser, table) == before
    assert superuser.execute(stamps).fetchall() == stamp


async def test_the_trail_names_user_key_request_and_role(database: Database, superuser: psycopg.Connection) -> None:
    alice = database.session("crafely_app", ALICE)
    await run(alice, "insert into agents (name, instructions, user_id) values ('n', '', 'alice') returning id")
    async with alice.transaction() as tx:
        await run(tx, "update agents set name = 'm' returning id")
    made = "insert into packages (name, price) values ('n', 1) returning id"
    await database.session("crafely_admin").execute(statement(made, "crafely_admin"), [])

    who = ("alice", "key_of_the_request", "request-1", "crafely_app")
    found = superuser.execute(
        "select actor_user_id, actor_api_key_id, request_id, actor_role, action, table_name from audit_log order by id"
    )
    assert found.fetchall() == [
        (*who, "insert", "agents"),
        (*who, "update", "agents"),
        (None, None, None, "crafely_admin", "insert", "packages"),
    ]


async def test_what_is_rolled_back_leaves_no_row(alice: Session, superuser: psycopg.Connection) -> None:
    class GivenUpError(Exception):
        pass

    async def give_up() -> None:
        async with alice.transaction() as tx:
            await run(tx, "insert into agents (name, instructions, user_id) values ('n', '', 'alice') returning id")
            raise GivenUpError

    with pytest.raises(GivenUpError):
        await give_up()

    assert superuser.execute("select from audit_log").rowcount == 0


def test_usage_is_its_own_record_but_its_changes_are_seen(superuser: psycopg.Connection) -> None:
    superuser.execute("insert into api_keys (id, key_id, hashed_key, user_id) values ('key_1', 'k', '', 'alice')")
    superuser.execute("insert into usage (id, api_key_id, user_id, cost) values ('row', 'key_1', 'alice', 1)")
    assert trail(superuser, "usage") == []

    superuser.execute("update usage set cost = 0")
    superuser.execute("delete from usage")

    updated, deleted = trail(superuser, "usage")
    assert (updated["old"], updated["new"], updated["row_id"]) == ({"cost": 1}, {"cost": 0}, "row")
    assert (deleted["action"], deleted["old"]["id"], deleted["user_id"]) == ("delete", "row", "alice")


async def test_a_user_reads_the_trail_of_own_rows_only(alice: Session, bob: Session) -> None:
    await run(alice, "insert into agents (name, instructions, user_id) values ('n', '', 'alice') returning id")

    assert await run(alice, "select table_name, action from audit_log") == [("agents", "insert")]
    assert await run(bob, "select table_name from audit_log") == []


AUDITED = ["agents", "api_keys", "encryption_keys", "packages", "threads", "usage", "user_subscriptions"]
# Tables whose changes leave nothing in the trail, and why.
UNAUDITED = {
    "audit_log": "the trail itself; it is sealed",
    "audit_seals": "a chain of its own",
    "idempotency_keys": "answers that were given, for a day; the changes themselves are in the trail",
    "monitor_samples": "sizes, which nobody changes",
    "usage_daily": "follows from usage: crafely usage reconcile",
    "usage_drops": "the function that adds to it tells the trail of the month that went",
    "usage_events": "follows from usage",
}


def test_every_table_is_audited_or_has_a_reason(superuser: psycopg.Connection) -> None:
    found = superuser.execute(
        "select c.relname, array(select tgtype::integer from pg_trigger t where t.tgrelid = c.oid"
        " and t.tgfoid = 'audit_change'::regproc and t.tgenabled = 'O' order by 1)"
        " from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')"
        " and not c.relispartition and c.relname not like '%yoyo%' order by 1"
    ).fetchall()
    assert {name for name, _ in found} == {*AUDITED, *UNAUDITED}
    for name, kinds in found:
        events = 0
        for kind in kinds:
            events |= kind & 0b111100
        # Insert 4, delete 8, update 16, truncate 32: https://www.postgresql.org/docs/current/catalog-pg-trigger.html
        expected = 8 | 16 | 32 | (4 if name != "usage" else 0)
        assert events == (expected if name in AUDITED else 0), name


@pytest.mark.parametrize("table", AUDITED)
def test_a_truncate_leaves_a_row(superuser: psycopg.Connection, table: str) -> None:
    with superuser.transaction():
        superuser.execute("select set_config('crafely.user_id', 'mallory', true)")
        superuser.execute(SQL("truncate {} cascade").format(Identifier(table)))
    (row,) = [row for row in trail(superuser, table) if row["action"] == "truncate"]
    assert (row["actor_user_id"], row["actor_role"]) == ("mallory", "postgres")
    assert (row["row_id"], row["user_id"], row["old"], row["new"]) == (None, None, None, None)
