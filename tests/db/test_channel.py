"""Channels answer as sessions do, and what befalls one statement is not told to the next."""

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
import uvloop

from crafely.db.channel import Channel
from crafely.db.query import Executor, Result, Statement, WrongRoleError
from crafely.db.session import Database
from tests.db.harm import Halves, away, backends, end, end_all, frozen, running
from tests.db.statements import opened, until
from tests.db.statements import statement as unnamed

ROLE = "crafely_app"


def statement(text: str, role: str = ROLE) -> Statement:
    """A channel prepares by name: each text has its own."""
    return msgspec.structs.replace(unnamed(text, role), name=text)


def counting(text: str) -> Statement:
    """A statement that gives no rows, only how many it touched."""
    return msgspec.structs.replace(statement(text), row_type=None, cardinality="count")


async def run(db: Executor, text: str, *values: object) -> Any:
    return (await db.execute(statement(text), values)).rows


@pytest.fixture
async def channel(database: Database) -> AsyncIterator[Channel]:
    channel = database.channel(ROLE)
    await channel.open()
    yield channel
    await channel.close()


@pytest.fixture
def probe(superuser: psycopg.Connection) -> psycopg.Connection:
    """A table to write into, whose b is checked when the transaction commits."""
    superuser.execute("create table probe (a integer check (a > 0), b integer unique deferrable initially deferred)")
    superuser.execute("grant select, insert, update on probe to crafely_app")
    return superuser


async def outcome(db: Executor, one: Statement, values: tuple[object, ...]) -> Any:
    """The result, or everything that an error says of itself."""
    try:
        result: Result = await db.execute(one, values)
    except psycopg.Error as error:
        return type(error), str(error), error.sqlstate, error.diag.constraint_name
    return result


VALUES: tuple[object, ...] = (
    None,
    "",
    'é ü 漢字 🗝 " \\ {} \n',
    -(2**31),
    True,
    Decimal("0.000000000001"),
    date(2026, 2, 28),
    datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=UTC),
    [],
    ['odd "one", {x}', None, "\\"],
    msgspec.Raw(b'{"a": [1, null, "\\u00e9"]}'),
)
EVERYTHING = (
    "select $1::text, $2::text, $3::text, $4::integer, $5::boolean, $6::numeric, $7::date, $8::timestamptz,"
    " $9::text[], $10::text[], $11::jsonb"
)
WRITE = "insert into probe values ($1)"


CASES: list[tuple[Statement, tuple[object, ...]]] = [
    (statement(EVERYTHING), VALUES),
    (statement("select 1 where false"), ()),
    (statement("select n, n::text from generate_series(1, 20000) n"), ()),
    (statement("select $1::text, md5($1::text)"), ("é" * 4_000_000,)),
    (statement("select repeat('x', 20000000)"), ()),
    (statement("select $1::text"), ("a\0b",)),
    (statement("select 1 / $1::integer"), (0,)),
    (statement("select 1 / n from generate_series(-5000, 0) n"), ()),
    (statement("select nonsense"), ()),
    (statement("selec"), ()),
    (statement("select $1::integer"), ("é",)),
    (statement("select 1 union select 2 for update"), ()),
    (statement("select secret from api_keys"), ()),
    (statement("insert into probe (b) values (1), (1) returning a"), ()),
    (counting("insert into probe (a) values ($1), (2), (3)"), (1,)),
    (counting("update probe set a = 1 where false"), ()),
    (counting("insert into probe (b) values (1), (1)"), ()),
    (counting("insert into probe (a) values (0)"), ()),
]
each_case = pytest.mark.parametrize(
    ("one", "values"), CASES, ids=lambda part: part.name[:60] if isinstance(part, Statement) else ""
)


@each_case
@pytest.mark.direct(reason="psycopg loses an error at the commit of a pipeline")
async def test_a_channel_answers_as_a_session_does(
    database: Database, channel: Channel, probe: psycopg.Connection, one: Statement, values: tuple[object, ...]
) -> None:
    of_session = await outcome(database.session(ROLE), one, values)

    # Prepared at the first time, and taken as prepared at the second.
    assert await outcome(channel, one, values) == of_session
    assert await outcome(channel, one, values) == of_session
    assert not channel.lost
    assert await run(channel, "select 'still'") == [("still",)]


@pytest.mark.direct(reason="it is about the one server process behind a connection")
async def test_a_channel_keeps_its_connection_its_role_and_its_statements(
    channel: Channel, superuser: psycopg.Connection
) -> None:
    first = await run(channel, "select pg_backend_pid(), current_user::text, current_setting('timezone')")
    assert first[0][1:] == (ROLE, "UTC")

    for _ in range(3):
        assert await run(channel, "select pg_backend_pid()") == [first[0][:1]]
    assert await run(channel, "select count(*) from pg_prepared_statements") == [(3,)]


async def test_a_statement_of_another_role_is_refused_and_never_sent(database: Database) -> None:
    channel = database.channel(ROLE)

    with pytest.raises(WrongRoleError, match="runs as crafely_admin, not as crafely_app"):
        await channel.execute(statement("select 1", role="crafely_admin"), ())

    assert channel.lost


CHANGES = [
    ("alter table probe add column c text default 'new'", [(1, None, "new")]),
    ("alter table probe alter column a type bigint", [(1, None)]),
]


@pytest.mark.parametrize(("change", "rows"), CHANGES)
async def test_a_stale_plan_is_made_anew(
    channel: Channel, probe: psycopg.Connection, change: str, rows: list[tuple[Any, ...]]
) -> None:
    probe.execute("insert into probe values (1)")
    assert await run(channel, "select * from probe") == [(1, None)]

    probe.execute(change.encode())

    assert await run(channel, "select * from probe") == rows
    assert await run(channel, "select * from probe") == rows


async def test_a_statement_with_a_stale_plan_writes_once(channel: Channel, probe: psycopg.Connection) -> None:
    text = "insert into probe values (1) returning *"
    await run(channel, text)
    probe.execute("alter table probe add column c text")

    assert await run(channel, text) == [(1, None, None)]
    assert probe.execute("select from probe").rowcount == 2


async def test_a_statement_that_the_connection_has_forgotten_is_prepared_again(channel: Channel) -> None:
    """As behind a transaction pooler, where the next statement may run on another server connection."""
    assert await run(channel, "select 'kept'") == [("kept",)]
    await channel.execute(counting("deallocate all"), ())

    assert await run(channel, "select 'kept'") == [("kept",)]


async def test_an_answer_that_comes_in_two_pieces_does_not_hold_up_the_loop(database_url: str) -> None:
    halves = Halves(database_url)
    with halves.between() as url:
        async with opened(url, roles=[]) as database:
            channel = database.channel(ROLE)
            assert await run(channel, "select 'whole'") == [("whole",)]
            halves.keep.set()
            task = asyncio.create_task(run(channel, "select 'whole'"))
            await until(halves.kept.is_set)
            # What has come is read, and the loop still turns.
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert not task.done()
            halves.release.set()
            assert await task == [("whole",)]
            assert not halves.given_up
            await channel.close()


async def lost_idle(channel: Channel, superuser: psycopg.Connection) -> None:
    [(pid,)] = await run(channel, "select pg_backend_pid()")
    end(superuser, pid)
    await until(lambda: channel.lost)


async def lost_in_flight(channel: Channel, superuser: psycopg.Connection) -> None:
    task = asyncio.create_task(run(channel, "select pg_sleep(30), 'lost'"))
    await until(lambda: running(superuser, "'lost'") == 1)
    end(superuser, *backends(superuser, "crafely app"))
    with pytest.raises(psycopg.errors.AdminShutdown, match="terminating connection"):
        await task


async def killed_in_flight(channel: Channel, superuser: psycopg.Connection) -> None:
    """There are no last words: here, because it is our own side that is cut."""
    task = asyncio.create_task(run(channel, "select pg_sleep(30), 'lost'"))
    await until(lambda: running(superuser, "'lost'") == 1)
    # A second descriptor of the same socket, to shut it down without libpq's knowledge.
    with socket.socket(fileno=os.dup(channel._socket)) as same:
        same.shutdown(socket.SHUT_RDWR)
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await task


async def given_up(channel: Channel, superuser: psycopg.Connection) -> None:
    task = asyncio.create_task(run(channel, "select pg_sleep(30), 'wrong'"))
    await until(lambda: running(superuser, "'wrong'") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


LARGE = "select pg_backend_pid(), length($1::text)"


async def given_up_while_it_is_sent(channel: Channel, superuser: psycopg.Connection) -> None:
    [(pid, _)] = await run(channel, LARGE, "small")
    with frozen(pid):
        task = asyncio.create_task(run(channel, LARGE, "x" * 8_000_000))
        await asyncio.sleep(0)
        # It is larger than what a socket takes while nobody reads.
        assert channel._pgconn.flush() == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def closed_in_flight(channel: Channel, superuser: psycopg.Connection) -> None:
    task = asyncio.create_task(run(channel, "select pg_sleep(30), 'closed'"))
    await until(lambda: running(superuser, "'closed'") == 1)
    await channel.close()
    with pytest.raises(psycopg.OperationalError, match="the connection was closed"):
        await task


async def silent(channel: Channel, superuser: psycopg.Connection) -> None:
    [(pid,)] = await run(channel, "select pg_backend_pid()")
    channel._seconds, usual = 0.1, channel._seconds
    with frozen(pid), pytest.raises(psycopg.OperationalError, match="the server does not answer"):
        await run(channel, "select pg_backend_pid()")
    channel._seconds = usual


async def silent_while_it_is_sent(channel: Channel, superuser: psycopg.Connection) -> None:
    [(pid, _)] = await run(channel, LARGE, "small")
    channel._seconds, usual = 0.1, channel._seconds
    with frozen(pid), pytest.raises(psycopg.OperationalError, match="the server does not answer"):
        await run(channel, LARGE, "x" * 8_000_000)
    channel._seconds = usual


HARM = [
    lost_idle,
    lost_in_flight,
    killed_in_flight,
    given_up,
    given_up_while_it_is_sent,
    closed_in_flight,
    silent,
    silent_while_it_is_sent,
]
Harm = Callable[[Channel, psycopg.Connection], Awaitable[None]]


@pytest.mark.direct(reason="it is about the one server process behind a connection")
@pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("harm", HARM)
def test_the_statement_after_a_lost_connection_gets_its_own_answer(
    database_url: str, superuser: psycopg.Connection, harm: Harm, loops: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    complaints: list[dict[str, Any]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        async with asyncio.timeout(60), opened(database_url, roles=[]) as database:
            channel = database.channel(ROLE)
            for number in range(3):
                [(before,)] = await run(channel, "select pg_backend_pid()")
                await harm(channel, superuser)
                assert channel.lost
                # The number of the socket is the next one's, whosoever: the loop must have forgotten it. (uvloop does
                # not say.)
                loop = asyncio.get_running_loop()
                assert True not in {loop.remove_reader(channel._socket), loop.remove_writer(channel._socket)}
                end_all(superuser, "crafely app")
                assert await run(channel, "select $1::integer", number) == [(number,)]
                assert list(channel._prepared) == ["select $1::integer"]
                assert await run(channel, "select pg_backend_pid()") != [(before,)]
                assert not channel.lost
            await channel.close()

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(story())
    assert complaints == []


async def test_a_task_that_is_cancelled_when_its_answer_is_there_leaves_the_connection_in_order(
    channel: Channel,
) -> None:
    await run(channel, "select 'unread'")
    task = asyncio.create_task(run(channel, "select 'unread'"))
    await asyncio.sleep(0)
    answer = channel._answer
    assert answer is not None
    # What the event loop would do, and nothing between that and the cancellation.
    while not answer.done():
        select.select([channel._socket], [], [], 10)
        channel._readable()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert not channel.lost
    assert await run(channel, "select 'next'") == [("next",)]


async def test_only_a_statement_is_waited_for_and_only_so_long(channel: Channel, superuser: psycopg.Connection) -> None:
    """Many statements, and pauses between them, may last longer than one."""

    def look() -> bool:
        channel._watching.cancel()
        channel._watch()
        return channel.lost

    await run(channel, "select 1")
    channel._begun -= 1000
    assert not look()
    task = asyncio.create_task(run(channel, "select pg_sleep(30)"))
    await until(lambda: running(superuser, "pg_sleep(30)") == 1)
    assert not look()
    # From here on it looks by itself.
    channel._begun -= 1000
    with pytest.raises(psycopg.OperationalError, match="the server does not answer"):
        await task
    assert channel._watching.cancelled()


@pytest.mark.direct(reason="it is about the one server process behind a connection")
async def test_a_database_that_is_gone_is_an_error_and_nothing_more_when_it_is_back(
    server: Any, database_url: str, channel: Channel, database: Database
) -> None:
    with away(server, database_url):
        await until(lambda: channel.lost)
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
                await run(channel, "select 1")
            assert channel.lost
    assert await run(channel, "select 1") == [(1,)]


async def test_the_observer_is_told_of_every_statement_and_whether_it_failed(database_url: str) -> None:
    told: list[tuple[str, bool]] = []
    async with opened(
        database_url, roles=[], observe=lambda name, seconds, failed: told.append((name, failed or seconds < 0))
    ) as database:
        channel = database.channel(ROLE)
        await run(channel, "select 1")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await run(channel, "select 1 / 0")
        task = asyncio.create_task(run(channel, "select pg_sleep(30)"))
        await until(lambda: channel._answer is not None)
        task.cancel()
        await asyncio.wait([task])
        channel._connect = refuse
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await run(channel, "select 2")

    names = ["select 1", "select 1 / 0", "select pg_sleep(30)", "select 2"]
    assert told == list(zip(names, [False, True, True, True], strict=True))


async def refuse() -> Any:
    raise psycopg.OperationalError("refused")
