"""Identity, transactions and stale plans, on real connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import psycopg
import pytest

from crafely.db.query import Executor
from crafely.db.session import Database, Identity, Session
from tests.db.statements import Rows, opened, run, until

WHO = (
    "select current_setting('crafely.user_id', true), current_setting('crafely.api_key_id', true),"
    " current_setting('crafely.request_id', true)"
)
ALICE = Identity("alice", "key_a", "request-a")
BOB = Identity("bob", "key_b", "request-b")


@pytest.fixture
async def single(database_url: str) -> AsyncIterator[Database]:
    """Users' statements all run on one connection."""
    async with opened(database_url, statement_timeout=1) as database:
        yield database


async def test_each_statement_runs_for_its_own_identity(single: Database) -> None:
    for identity in (ALICE, BOB, Identity("carol"), ALICE):
        session = single.session("crafely_app", identity)
        assert await run(session, WHO) == [(identity.user_id, identity.api_key_id, identity.request_id)]


async def ends_well(session: Session, _: psycopg.Connection) -> None:
    await run(session, "select 1")


async def fails(session: Session, _: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await run(session, "select 1 / 0")


async def is_refused_by_the_client(session: Session, _: psycopg.Connection) -> None:
    with pytest.raises(psycopg.DataError):
        await run(session, "select $1::text", "\0")


async def takes_too_long(session: Session, _: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
        await run(session, "select pg_sleep(30)")


async def sleep(db: Executor) -> Rows:
    return await run(db, "select pg_sleep(30)")


async def sleep_in_a_transaction(session: Session) -> None:
    async with session.transaction() as tx:
        await sleep(tx)


def sleepers(superuser: psycopg.Connection) -> bool:
    found = superuser.execute(
        "select from pg_stat_activity"
        " where state = 'active' and query = 'select pg_sleep(30)' and datname = current_database()"
    )
    return found.rowcount > 0


async def cancel(task: asyncio.Task[Any], superuser: psycopg.Connection) -> None:
    await until(lambda: sleepers(superuser))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not sleepers(superuser))


async def is_cancelled(session: Session, superuser: psycopg.Connection) -> None:
    await cancel(asyncio.create_task(sleep(session)), superuser)


async def is_cancelled_in_a_transaction(session: Session, superuser: psycopg.Connection) -> None:
    await cancel(asyncio.create_task(sleep_in_a_transaction(session)), superuser)


async def commits(session: Session, _: psycopg.Connection) -> None:
    async with session.transaction() as tx:
        await run(tx, "select 1")


async def commits_nothing(session: Session, _: psycopg.Connection) -> None:
    async with session.transaction():
        pass


async def rolls_back(session: Session, _: psycopg.Connection) -> None:
    with suppress(KeyError):
        async with session.transaction() as tx:
            await run(tx, "select 1")
            raise KeyError


async def fails_in_a_transaction(session: Session, _: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with session.transaction() as tx:
            await run(tx, "select 1 / 0")


async def loses_its_connection(session: Session, superuser: psycopg.Connection) -> None:
    task = asyncio.create_task(sleep(session))
    await until(lambda: sleepers(superuser))
    superuser.execute("select pg_terminate_backend(pid) from pg_stat_activity where query = 'select pg_sleep(30)'")
    with pytest.raises(psycopg.OperationalError):
        await task


@pytest.mark.parametrize(
    "what_alice_does",
    [
        ends_well,
        fails,
        is_refused_by_the_client,
        takes_too_long,
        is_cancelled,
        commits,
        commits_nothing,
        rolls_back,
        fails_in_a_transaction,
        is_cancelled_in_a_transaction,
        loses_its_connection,
    ],
)
async def test_the_next_user_of_the_connection_inherits_nothing(
    single: Database,
    superuser: psycopg.Connection,
    what_alice_does: Callable[[Session, psycopg.Connection], Awaitable[None]],
) -> None:
    alice, bob, nobody = (single.session("crafely_app", *identity) for identity in ([ALICE], [BOB], []))
    await run(alice, "insert into agents (name, instructions, user_id) values ('hers', '', 'alice') returning id")

    await what_alice_does(alice, superuser)

    # A setting that was local to a transaction reads '' after it, on a new connection null: nobody in both cases.
    assert set(*await run(nobody, WHO)) <= {"", None}
    assert await run(nobody, "select name from agents") == []
    assert await run(bob, "select name from agents") == []
    assert await run(bob, WHO) == [("bob", "key_b", "request-b")]
    assert await run(alice, "select name from agents") == [("hers",)]


async def test_the_setting_reads_empty_after_a_statement(single: Database) -> None:
    """Not null: this is why current_user_id() has its nullif."""
    pid = await run(single.session("crafely_app", ALICE), "select pg_backend_pid()")

    nobody = single.session("crafely_app")

    assert await run(nobody, "select pg_backend_pid()") == pid
    assert await run(nobody, WHO) == [("", "", "")]
    assert await run(nobody, "select current_user_id()") == [(None,)]


async def test_a_session_and_a_transaction_answer_alike(alice: Session) -> None:
    async def story(db: Executor, name: str) -> list[Rows]:
        return [
            await run(
                db, "insert into agents (name, instructions, user_id) values ($1, '', 'alice') returning name", name
            ),
            await run(db, "select name from agents where name = $1", name),
            await run(db, "select $1::numeric, $2::text[], $3::jsonb", 1, ["a"], msgspec.Raw(b"[1]")),
            await run(db, "select 1 where false"),
            await run(db, "select current_user_id(), current_user"),
        ]

    in_session = await story(alice, "one")
    async with alice.transaction() as tx:
        in_transaction = await story(tx, "one")

    assert in_session[0] == in_transaction[0] == [("one",)]
    assert in_transaction[1] == [("one",), ("one",)]
    assert in_session[2:] == in_transaction[2:]


async def add_agent(db: Executor, name: str) -> None:
    await run(db, "insert into agents (name, instructions, user_id) values ($1, '', 'alice') returning id", name)


async def names(db: Executor) -> list[str]:
    return [name for (name,) in await run(db, "select name from agents order by name")]


async def test_a_transaction_happens_as_a_whole(alice: Session) -> None:
    async with alice.transaction() as tx:
        await add_agent(tx, "one")
        await add_agent(tx, "two")
        assert await names(tx) == ["one", "two"]
        assert await names(alice) == []

    assert await names(alice) == ["one", "two"]


async def test_nothing_stays_of_a_transaction_that_the_caller_leaves_by_an_error(alice: Session) -> None:
    with suppress(KeyError):
        async with alice.transaction() as tx:
            await add_agent(tx, "one")
            raise KeyError

    assert await names(alice) == []


async def test_nothing_stays_of_a_transaction_whose_second_statement_fails(alice: Session) -> None:
    async def both() -> None:
        async with alice.transaction() as tx:
            await add_agent(tx, "one")
            await add_agent(tx, "")

    with pytest.raises(psycopg.errors.CheckViolation):
        await both()
    assert await names(alice) == []


async def test_a_transaction_whose_error_was_swallowed_does_not_end_in_silence(alice: Session) -> None:
    async def swallow() -> None:
        async with alice.transaction() as tx:
            await add_agent(tx, "one")
            with suppress(psycopg.errors.CheckViolation):
                await add_agent(tx, "")

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await swallow()
    assert await names(alice) == []


@pytest.fixture
def probe(superuser: psycopg.Connection) -> psycopg.Connection:
    """A table that a migration may change under a prepared statement."""
    superuser.execute("create table probe (a integer)")
    superuser.execute("insert into probe values (1)")
    superuser.execute("grant select, insert on probe to crafely_app")
    return superuser


CHANGES = [
    ("alter table probe add column b text default 'new'", [(1, "new")]),
    ("alter table probe alter column a type text", [("1",)]),
]


@pytest.mark.parametrize(("change", "rows"), CHANGES)
@pytest.mark.parametrize("identity", [(ALICE,), ()], ids=["for alice", "for nobody"])
async def test_a_stale_plan_is_made_anew(
    single: Database, probe: psycopg.Connection, identity: tuple[Identity, ...], change: str, rows: Rows
) -> None:
    session = single.session("crafely_app", *identity)
    assert await run(session, "select * from probe") == [(1,)]
    # The statement is prepared now, and its plan is kept.
    assert await run(session, "select * from probe") == [(1,)]

    probe.execute(change.encode())

    assert await run(session, "select * from probe") == rows
    assert await run(session, "select * from probe") == rows


async def test_a_statement_with_a_stale_plan_writes_once(single: Database, probe: psycopg.Connection) -> None:
    session = single.session("crafely_app", ALICE)
    await run(session, "insert into probe values (2) returning *")
    probe.execute("alter table probe add column b text")

    assert await run(session, "insert into probe values (2) returning *") == [(2, None)]
    assert await run(session, "select a from probe order by a") == [(1,), (2,), (2,)]


@pytest.mark.direct(reason="behind a pooler nothing is prepared, and no plan is stale")
async def test_a_stale_plan_fails_a_transaction_whole_and_the_next_attempt_succeeds(
    single: Database, probe: psycopg.Connection
) -> None:
    session = single.session("crafely_app", ALICE)

    async def both() -> Rows:
        async with session.transaction() as tx:
            await add_agent(tx, "one")
            return await run(tx, "select * from probe")

    assert await both() == [(1,)]
    probe.execute("alter table probe add column b text")

    with pytest.raises(psycopg.errors.FeatureNotSupported):
        await both()
    assert await names(session) == ["one"]
    assert await run(session, "select * from probe") == [(1, None)]
    assert await both() == [(1, None)]


async def test_a_statement_that_the_connection_has_forgotten_is_prepared_again(single: Database) -> None:
    """As behind a transaction pooler, where the next statement may run on another server connection."""
    session = single.session("crafely_app", ALICE)
    assert await run(session, "select 'kept'") == [("kept",)]
    async with single.pools["crafely_app"].connection() as connection:
        # Behind psycopg's back: it would forget with us if we told it.
        connection.pgconn.exec_(b"deallocate all")

    assert await run(session, "select 'kept'") == [("kept",)]


async def test_what_the_server_does_not_support_is_not_tried_for_ever(single: Database) -> None:
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        await run(single.session("crafely_app", ALICE), "select 1 union select 2 for update")
