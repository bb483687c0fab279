"""A server, or a network, that says nothing at all: it is given up, and the next statement finds another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import PoolTimeout

from crafely.db import embedded, listen, session
from crafely.db.channel import SILENT
from crafely.db.listen import Listener
from crafely.db.session import Database, DatabaseUnavailableError, Identity, Session
from tests.db.harm import away, frozen
from tests.db.statements import opened, run, statement, until
from tests.faults.proxy import Proxy

ALICE = Identity("alice")
PID = "select pg_backend_pid()"
LOGIN = b"select current_user"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_SILENCE", 0.2)
    monkeypatch.setattr(session, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(listen, "ANSWER", 0.3)


@pytest.fixture
async def alice_alone(database_url: str) -> AsyncIterator[Session]:
    """On the only connection of a pool, whose statements may take little time."""
    url = make_conninfo(database_url, connect_timeout=5)
    async with asyncio.timeout(60), opened(url, statement_timeout=0.2, pool_timeout=10) as database:
        yield database.session("crafely_app", ALICE)


async def one_statement(alice: Session) -> None:
    await run(alice, "select 1")


async def first_of_a_transaction(alice: Session) -> None:
    async with alice.transaction() as transaction:
        await transaction.execute(statement("select 1"), [])


@pytest.mark.parametrize("story", [one_statement, first_of_a_transaction])
async def test_a_statement_without_an_answer_is_given_up_and_the_next_one_runs(
    alice_alone: Session, story: Callable[[Session], Awaitable[None]]
) -> None:
    [(pid,)] = await run(alice_alone, PID)
    with frozen(pid), pytest.raises(psycopg.OperationalError, match=SILENT):
        await story(alice_alone)
    assert await run(alice_alone, PID) != [(pid,)]


async def test_a_transaction_is_given_up_wherever_it_stands(alice_alone: Session, database_url: str) -> None:
    [(pid,)] = await run(alice_alone, PID)

    async def second() -> None:
        async with alice_alone.transaction() as transaction:
            await transaction.execute(statement(PID), [])
            with frozen(pid):
                await transaction.execute(statement("select 2"), [])

    with pytest.raises(psycopg.OperationalError, match=SILENT):
        await second()
    [(pid,)] = await run(alice_alone, PID)
    proxy = Proxy()
    with proxy.between(make_conninfo(database_url, connect_timeout=5)) as url:
        async with asyncio.timeout(60), opened(url, statement_timeout=0.2, pool_timeout=10) as database:
            alice = database.session("crafely_app", ALICE)
            proxy.silent_at = b"commit"
            with pytest.raises(psycopg.OperationalError, match=SILENT):
                async with alice.transaction() as transaction:
                    await transaction.execute(statement(PID), [])
            assert proxy.struck == 1
            proxy.silent = False
            assert await run(alice, "select 3") == [(3,)]


async def test_many_statements_of_a_transaction_may_take_longer_than_one(alice_alone: Session) -> None:
    async with alice_alone.transaction() as transaction:
        for _ in range(6):
            await transaction.execute(statement("select pg_sleep(0.1)"), [])


async def test_a_server_that_falls_silent_when_the_login_is_checked_is_given_up(database_url: str) -> None:
    proxy = Proxy()
    with proxy.between(make_conninfo(database_url, connect_timeout=5)) as url:
        proxy.silent_at = LOGIN
        with pytest.raises(DatabaseUnavailableError, match=SILENT):
            async with asyncio.timeout(30), opened(url):
                pass
        proxy.silent = False
        async with asyncio.timeout(60), opened(url, pool_timeout=1, size=2) as database:
            proxy.silent_at = LOGIN
            with pytest.raises(psycopg.OperationalError, match=SILENT):
                await database.connect("crafely_app")
            proxy.silent = False
            await pool_in_silence(database, proxy)


async def pool_in_silence(database: Database, proxy: Proxy) -> None:
    """Its own attempts end, too: whoever asks is told, and served when there is a network again."""
    alice = database.session("crafely_app", ALICE)
    async with database.pools["crafely_app"].connection():
        proxy.silent_at = LOGIN
        with pytest.raises(PoolTimeout):
            await run(alice, PID)
        assert proxy.struck == 3
        proxy.silent = False
        # Until then the only other connection is taken.
        for _ in range(10):
            try:
                assert len(await run(alice, PID)) == 1
            except PoolTimeout:
                continue
            break
        else:
            pytest.fail("the pool never made another connection")


async def test_a_server_that_falls_silent_when_it_is_to_listen_is_given_up_and_tried_again(database_url: str) -> None:
    heard: list[str] = []
    proxy = Proxy()
    with proxy.between(make_conninfo(database_url, connect_timeout=5)) as url:
        async with asyncio.timeout(60), opened(url) as database:
            listener = Listener(
                lambda: database.connect("crafely_app"),
                "probe",
                heard=heard.append,
                up=lambda: heard.append("up"),
                down=lambda: heard.append("down"),
            )
            proxy.silent_at = b'listen "probe"'
            with pytest.raises(psycopg.OperationalError, match=SILENT):
                await listener.open()
            assert proxy.struck == 1
            proxy.silent = False
            await listener.open()
            await run(database.session("crafely_app", ALICE), "select pg_notify('probe', 'told')::text")
            await until(lambda: "told" in heard)
            await listener.close()


async def test_a_pool_does_not_wait_longer_and_longer_for_a_server_that_is_away(
    server: embedded.Server, database_url: str
) -> None:
    """Left to itself it would try again after minutes, when it has been away for minutes."""
    async with asyncio.timeout(60), opened(database_url, pool_timeout=0.2) as database:
        alice = database.session("crafely_app", ALICE)
        with away(server, database_url):
            with pytest.raises(psycopg.OperationalError):
                await run(alice, PID)
            # Nothing waits for its time: who asks next begins anew.
            await until(lambda: database.pools["crafely_app"].get_stats()["pool_size"] == 0)
        for _ in range(50):
            try:
                assert len(await run(alice, PID)) == 1
            except PoolTimeout:
                continue
            break
        else:
            pytest.fail("never served again")
