"""Behind PgBouncer in transaction mode, where one connection of the server serves everybody in turn."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest

from crafely.db import embedded
from crafely.db.begin import NOBODY
from crafely.db.channel import Channel
from crafely.db.pooled_channel import PooledChannel
from crafely.db.query import Statement, WrongRoleError
from crafely.db.session import Database, DatabaseUnavailableError, Identity, Session
from tests.db.harm import away, running
from tests.db.statements import opened, run, until
from tests.db.statements import statement as statement_of
from tests.db.test_channel import ROLE, counting, each_case, outcome, probe, statement
from tests.db.test_session_pools import Turns
from tests.pooler import PASSWORD, Pooler, needs_pgbouncer, pooling

pytestmark = needs_pgbouncer

__all__ = ["probe"]

ALICE, BOB = Identity("alice", "key_alice", "of alice"), Identity("bob", "key_bob", "of bob")
ROLES = ("crafely_app", "crafely_auth", "crafely_meter", "crafely_admin")
WHO = (
    "select current_user::text, coalesce(current_user_id(), ''), current_setting('crafely.api_key_id'),"
    " current_setting('crafely.request_id')"
)
# What a connection of the server is when nobody has said anything.
TRACES = (
    "select current_user::text, coalesce(current_setting('crafely.user_id', true), ''),"
    " coalesce(current_setting('crafely.api_key_id', true), ''), current_setting('statement_timeout'),"
    " current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'), current_setting('jit'),"
    " current_setting('plan_cache_mode'), (select count(*) from pg_prepared_statements)"
)


@pytest.fixture(scope="module")
def pooler(server: embedded.Server) -> Iterator[Pooler]:
    """One connection of the server for each database."""
    with pooling(server.url, default_pool_size=1) as pooler:
        yield pooler


@asynccontextmanager
async def behind(pooler: Pooler, url: str, **options: Any) -> AsyncIterator[Database]:
    async with opened(url, pooler=pooler.url(url), **options) as database:
        yield database


@pytest.fixture
async def pooled(pooler: Pooler, database_url: str) -> AsyncIterator[Database]:
    """The pools of every role, of eight connections to the pooler for users; with patience, for all wait for one."""
    async with behind(pooler, database_url, size=8, roles=ROLES, pool_timeout=90, statement_timeout=60) as database:
        yield database


async def together(session: Session, *several: tuple[Statement, tuple[object, ...]], swallow: bool = False) -> None:
    async with session.transaction() as tx:
        for one, values in several:
            with suppress(*([psycopg.errors.DivisionByZero] if swallow else [])):
                await tx.execute(one, values)


def nothing_is_left(pooler: Pooler, url: str) -> bool:
    """Whether the next client finds the connection that all others have used as one that nobody has."""
    found = []
    for where in (pooler.url(url), url):
        with psycopg.connect(where, autocommit=True, prepare_threshold=None) as connection:
            found.append(connection.execute(TRACES.encode()).fetchall())
    return found[0] == found[1]


def pids(superuser: psycopg.Connection) -> list[int]:
    """The server's connections to the test's database but ours."""
    found = superuser.execute(
        "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend'"
    )
    return [pid for (pid,) in found]


async def test_no_role_and_no_identity_reaches_the_next_client(
    pooler: Pooler, pooled: Database, database_url: str, superuser: psycopg.Connection
) -> None:
    texts = {role: statement_of(WHO, role) for role in ROLES}

    async def one(session: Session, role: str, identity: Identity) -> None:
        (found,) = (await session.execute(texts[role], ())).rows
        assert found == (role, identity.user_id, identity.api_key_id, identity.request_id)

    async def several(session: Session, role: str, identity: Identity) -> None:
        async with session.transaction() as tx:
            for _ in range(3):
                (found,) = (await tx.execute(texts[role], ())).rows
                assert found == (role, identity.user_id, identity.api_key_id, identity.request_id)

    async def wrong(session: Session, role: str, identity: Identity) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await session.execute(statement_of("select 1 / 0", role), ())
        await one(session, role, identity)

    async def undone(session: Session, role: str, identity: Identity) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await together(session, (texts[role], ()), (statement_of("select 1 / 0", role), ()))
        await one(session, role, identity)

    async def channelled(number: int) -> None:
        channel = pooled.channel(ROLES[number % 4])
        for _ in range(10):
            (found,) = (await channel.execute(texts[channel.role], ())).rows
            assert found == (channel.role, "", "", "")
        await channel.close()

    who: list[tuple[str, Identity]] = [(role, identity) for role in ROLES for identity in (ALICE, BOB, NOBODY)]
    stories: list[Callable[[Session, str, Identity], Awaitable[None]]] = [one, several, wrong, undone]
    async with asyncio.timeout(120):
        await asyncio.gather(
            *(
                story(pooled.session(role, identity), role, identity)
                for _ in range(2)
                for role, identity in who
                for story in stories
            ),
            *(channelled(number) for number in range(8)),
        )

    assert len(pids(superuser)) == 1
    assert nothing_is_left(pooler, database_url)


async def test_the_limits_of_a_session_are_those_of_its_transaction(pooler: Pooler, database_url: str) -> None:
    limits = (
        "select current_setting('statement_timeout'), current_setting('lock_timeout'),"
        " current_setting('idle_in_transaction_session_timeout'), current_setting('timezone'), current_setting('jit'),"
        " current_setting('plan_cache_mode')"
    )
    wanted = [("2s", "1s", "2s", "UTC", "off", "force_generic_plan")]
    async with behind(pooler, database_url, statement_timeout=2) as database:
        session = database.session(ROLE, ALICE)
        assert await run(session, limits) == wanted
        async with session.transaction() as tx:
            await run(tx, "select 1")
            assert await run(tx, limits) == wanted
        channel = database.channel(ROLE)
        assert await run(channel, limits) == wanted
        await channel.close()


async def test_a_statement_that_takes_too_long_is_ended(pooler: Pooler, database_url: str) -> None:
    async with behind(pooler, database_url, statement_timeout=1) as database:
        session, channel = database.session(ROLE, ALICE), database.channel(ROLE)
        for db in (session, channel):
            with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
                await run(db, "select pg_sleep(30)")
            assert await run(db, "select current_user::text") == [(ROLE,)]
        await channel.close()


async def test_a_transaction_is_whole_or_not_at_all(
    pooled: Database, probe: psycopg.Connection, pooler: Pooler, database_url: str
) -> None:
    session = pooled.session(ROLE, ALICE)
    insert = statement("insert into probe values ($1, $2) returning a")
    async with session.transaction() as tx:
        await tx.execute(insert, (1, 1))
        # As another role in the same transaction, and back.
        (who,) = (await tx.execute_as("crafely_auth", statement_of(WHO, "crafely_auth"), ())).rows
        assert who[:2] == ("crafely_auth", "alice")
        assert (await run(tx, WHO))[0][:2] == (ROLE, "alice")
    with pytest.raises(psycopg.errors.CheckViolation):
        await together(session, (insert, (2, 2)), (insert, (0, 3)))
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        await together(session, (insert, (3, 3)), (statement("select 1 / 0"), ()), swallow=True)
    # At the commit.
    with pytest.raises(psycopg.errors.UniqueViolation):
        await together(session, (insert, (4, 1)))

    assert probe.execute("select a from probe").fetchall() == [(1,)]
    assert nothing_is_left(pooler, database_url)


@each_case
@pytest.mark.direct(reason="it compares with what there is without a pooler")
async def test_a_channel_answers_as_a_session_without_a_pooler_does(
    pooler: Pooler, database_url: str, database: Database, probe: psycopg.Connection, one: Statement, values: Any
) -> None:
    of_session = await outcome(database.session(ROLE), one, values)
    async with behind(pooler, database_url) as pooled:
        channel = pooled.channel(ROLE)
        assert isinstance(channel, PooledChannel)

        assert await outcome(channel, one, values) == of_session
        # psycopg loses what comes at the commit of a pipeline, and the connection with it; no constraint of ours waits
        # for that.
        if "(1), (1)" not in one.name:
            assert await outcome(pooled.session(ROLE), one, values) == of_session
        assert await outcome(channel, one, values) == of_session
        assert not channel.lost
        assert await run(channel, "select 'still'") == [("still",)]
        await channel.close()


async def test_a_channel_whose_role_is_gone_says_so(pooled: Database) -> None:
    channel = pooled.channel(ROLE)
    assert isinstance(channel, PooledChannel)
    channel._values[0] = b"crafely_gone"

    for _ in range(2):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match='role "crafely_gone" does not exist'):
            await run(channel, "select 1")
    await channel.close()


async def test_a_channel_writes_once(pooled: Database, probe: psycopg.Connection) -> None:
    channel = pooled.channel(ROLE)
    assert (await channel.execute(counting("insert into probe (a) values ($1), (2)"), (1,))).count == 2
    assert probe.execute("select a from probe order by a").fetchall() == [(1,), (2,)]
    await channel.close()


async def test_nothing_takes_more_round_trips_than_without(pooler: Pooler, database_url: str) -> None:
    turns = Turns(pooler.url(database_url))
    async with turns.between() as url, opened(database_url, pooler=url) as database:
        session, channel = database.session(ROLE, ALICE), database.channel(ROLE)
        await channel.open()

        for db in (session, database.session(ROLE), channel):
            before = turns.count
            for _ in range(5):
                await run(db, "select current_user_id()")
            assert turns.count - before == 5

        before = turns.count
        async with session.transaction() as tx:
            for _ in range(3):
                await run(tx, "select 1")
        assert turns.count - before == 4
        await channel.close()


async def test_what_needs_a_session_has_the_server_itself(pooled: Database) -> None:
    async with await pooled.connect("crafely_auth") as connection:
        told: list[str] = []
        connection.add_notify_handler(lambda one: told.append(one.payload))
        await connection.execute("listen heard")
        await run(pooled.session(ROLE), "select pg_notify('heard', 'you')")
        async with asyncio.timeout(60):
            while not told:
                await connection.execute("select current_user")
        assert told == ["you"]
        # Of a session: what RESET goes back to.
        await connection.execute("reset role")
        assert await (await connection.execute("select current_user::text")).fetchone() == ("crafely_auth",)


async def test_a_client_that_is_killed_leaves_nothing(
    pooler: Pooler, pooled: Database, database_url: str, superuser: psycopg.Connection
) -> None:
    ours = await pooled.pools[ROLE].getconn()
    await ours.execute("begin")
    await pooled._begins[ROLE].send(ours, ALICE)
    assert await (await ours.execute(WHO.encode())).fetchone() == (ROLE, "alice", "key_alice", "of alice")
    # No farewell, in the middle of a transaction: as of a process that is no more.
    ours.pgconn.finish()
    await pooled.pools[ROLE].putconn(ours)

    async with asyncio.timeout(60):
        assert await run(pooled.session(ROLE, BOB), WHO) == [(ROLE, "bob", "key_bob", "of bob")]
    assert nothing_is_left(pooler, database_url)


@pytest.mark.parametrize("kind", ["session", "channel"])
async def test_who_is_cancelled_leaves_nothing(
    pooler: Pooler, pooled: Database, database_url: str, superuser: psycopg.Connection, kind: str
) -> None:
    channel = pooled.channel(ROLE)
    task = asyncio.create_task(
        run(channel if kind == "channel" else pooled.session(ROLE, ALICE), "select pg_sleep(8), 'cancelled'")
    )
    await until(lambda: running(superuser, "'cancelled'") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert channel.lost
    assert await run(channel, WHO) == [(ROLE, "", "", "")]
    assert await run(pooled.session(ROLE, BOB), WHO) == [(ROLE, "bob", "key_bob", "of bob")]
    await channel.close()
    assert nothing_is_left(pooler, database_url)


async def served(db: Channel | Session) -> bool:
    try:
        await run(db, "select current_user_id()")
    except psycopg.OperationalError:
        return False
    return True


async def back(*several: Channel | Session) -> None:
    """Waits until they are served again; nobody has helped."""
    for db in several:
        while not await served(db):  # noqa: ASYNC110 - another process says when
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_pooler_that_goes_and_comes_is_an_error_and_nothing_more(
    server: embedded.Server, database_url: str, number: signal.Signals
) -> None:
    with pooling(server.url) as own:
        async with asyncio.timeout(120), behind(own, database_url, pool_timeout=1) as database:
            session, channel = database.session(ROLE, ALICE), database.channel(ROLE)
            await channel.open()
            tasks = [asyncio.create_task(run(db, "select pg_sleep(30)")) for db in (session, channel)]
            with psycopg.connect(database_url, autocommit=True) as superuser:
                await until(lambda: running(superuser, "pg_sleep(30)") == 2)
            own.stop(number)
            for task in tasks:
                with pytest.raises(psycopg.OperationalError):
                    await task
            assert not await served(session)
            assert not await served(channel)
            own.start()
            await back(session, channel)
            assert await run(session, "select current_user_id()") == [("alice",)]
            assert await run(channel, "select current_user::text") == [(ROLE,)]
            await channel.close()


async def test_a_server_that_goes_and_comes_behind_it_is_an_error_and_nothing_more(
    server: embedded.Server, database_url: str
) -> None:
    with pooling(server.url, server_login_retry=1, query_wait_timeout=3) as own:
        async with asyncio.timeout(120), behind(own, database_url, pool_timeout=1) as database:
            session, channel = database.session(ROLE, ALICE), database.channel(ROLE)
            await channel.open()
            tasks = [asyncio.create_task(run(db, "select pg_sleep(30)")) for db in (session, channel)]
            with psycopg.connect(database_url, autocommit=True) as superuser:
                await until(lambda: running(superuser, "pg_sleep(30)") == 2)
            with away(server, database_url):
                for task in tasks:
                    with pytest.raises(psycopg.OperationalError):
                        await task
                assert not await served(session)
                assert not await served(channel)
            await back(session, channel)
            await channel.close()


def refused(pooler: Pooler, database_url: str, **parts: Any) -> Any:
    return opened(database_url, pooler=pooler.url(database_url, **parts), pool_timeout=1)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"port": 1}, "cannot use the database at /.*: .*No such file"),
        ({"user": "stranger"}, "cannot use the database at /.*: .*SASL authentication failed"),
        ({"dbname": "missing"}, 'cannot use the database at /.*: .*"missing" does not exist'),
        ({"dbname": "postgres"}, "it leads to another database than CRAFELY_DATABASE_URL"),
        ({"options": "-c jit=on"}, "unsupported startup parameter"),
    ],
)
async def test_a_pooler_that_cannot_be_used_is_one_line_without_the_password(
    pooler: Pooler, database_url: str, parts: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DatabaseUnavailableError, match=problem) as caught:
        async with refused(pooler, database_url, **parts):
            pass

    assert not caught.value.passes
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_a_login_that_may_not_take_the_role_on_is_refused(
    server: embedded.Server, database_url: str, superuser: psycopg.Connection
) -> None:
    superuser.execute("drop role if exists crafely_test_pooled")
    superuser.execute("create role crafely_test_pooled login")
    try:
        with pooling(server.url) as own:
            own.admit("crafely_test_pooled")
            with pytest.raises(DatabaseUnavailableError, match='permission denied to set role "crafely_app"'):
                async with refused(own, database_url, user="crafely_test_pooled"):
                    pass
    finally:
        superuser.execute("drop role crafely_test_pooled")


async def test_a_pooler_that_is_full_lets_one_in_later(server: embedded.Server, database_url: str) -> None:
    with pooling(server.url, max_client_conn=1) as own:
        async with await psycopg.AsyncConnection.connect(own.url(database_url)):
            with pytest.raises(DatabaseUnavailableError, match="no more connections allowed") as caught:
                async with refused(own, database_url):
                    pass
        assert caught.value.passes


async def test_who_waits_too_long_for_the_server_is_told(server: embedded.Server, database_url: str) -> None:
    with pooling(server.url, default_pool_size=1, query_wait_timeout=3) as own:
        async with behind(own, database_url, size=2) as database:
            channel = database.channel(ROLE)
            await channel.open()
            with psycopg.connect(own.url(database_url), prepare_threshold=None) as holder:
                holder.execute("select 1")
                with pytest.raises(psycopg.OperationalError, match="query_wait_timeout"):
                    await run(channel, "select 1")
                # psycopg's pipeline finds the connection closed before it has read why.
                with pytest.raises(psycopg.OperationalError, match=r"query_wait_timeout|server closed the connection"):
                    await run(database.session(ROLE, ALICE), "select 1")
                with pytest.raises(DatabaseUnavailableError, match=r"query_wait_timeout|server closed") as caught:
                    async with refused(own, database_url):
                        pass
            assert caught.value.passes
            for db in (database.session(ROLE, ALICE), channel):
                assert await run(db, "select 1") == [(1,)]
            await channel.close()


async def test_a_statement_of_another_role_is_refused(pooled: Database) -> None:
    channel = pooled.channel(ROLE)
    for db in (pooled.session(ROLE), channel):
        with pytest.raises(WrongRoleError, match="runs as crafely_admin, not as crafely_app"):
            await db.execute(statement("select 1", role="crafely_admin"), ())
    assert channel.lost
