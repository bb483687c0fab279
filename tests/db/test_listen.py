"""What the database tells is heard, and when it may not have been, that is said at once."""

import asyncio
import logging
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest
import uvloop

from crafely.db import embedded, listen
from crafely.db.connection import Connection
from crafely.db.listen import Listener
from crafely.db.query import WrongRoleError
from crafely.db.session import Database
from tests.db.harm import away, backends, end, frozen
from tests.db.statements import opened, until

ROLE = "crafely_auth"
APPLICATION = "crafely auth"


class Ear:
    """A listener, and what it has told: "up", "down" and what it has heard, in order."""

    def __init__(self, database: Database, channel: str = "gossip") -> None:
        self._database = database
        self.told: list[str] = []
        self.listener = Listener(
            self.connect,
            channel,
            heard=self.told.append,
            up=lambda: self.told.append("up"),
            down=lambda: self.told.append("down"),
        )

    async def connect(self) -> Connection:
        return await self._database.connect(ROLE)

    async def tells(self, *wanted: str) -> None:
        """Waits until it has told this and nothing else, and forgets it."""
        await until(lambda: len(self.told) >= len(wanted))
        assert self.told == list(wanted)
        self.told.clear()


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Ear]:
    async with opened(url, roles=[]) as database:
        ear = Ear(database)
        await ear.listener.open()
        try:
            await ear.tells("up")
            yield ear
        finally:
            await ear.listener.close()


@pytest.fixture
async def ear(database_url: str) -> AsyncIterator[Ear]:
    async with listening(database_url) as ear:
        yield ear


def notify(superuser: psycopg.Connection, *payloads: str, channel: str = "gossip") -> None:
    for payload in payloads:
        superuser.execute("select pg_notify(%s, %s)", [channel, payload])


async def test_what_is_told_is_heard_in_order_and_nothing_else(ear: Ear, superuser: psycopg.Connection) -> None:
    notify(superuser, "no", channel="elsewhere")
    with superuser.transaction(force_rollback=True):
        notify(superuser, "never")
    with superuser.transaction():
        notify(superuser, "a", "b", "a", "é 漢", "")
        assert ear.told == []
    notify(superuser, "x" * 7999)

    await ear.tells("a", "b", "é 漢", "", "x" * 7999)


async def test_what_is_told_before_anybody_says_that_it_listens_is_heard(
    database: Database, superuser: psycopg.Connection
) -> None:
    """Somebody reads a row after ``up``: its change must have been heard, or be heard still."""
    ear = Ear(database)

    async def connect() -> Connection:
        connection = await database.connect(ROLE)
        # It listens already, and what is told now comes before the answer to its LISTEN.
        await connection.execute("listen gossip")
        notify(superuser, "before")
        return connection

    def up() -> None:
        notify(superuser, "while")
        ear.told.append("up")

    ear.listener._connect, ear.listener._up = connect, up
    await ear.listener.open()
    await ear.tells("before", "up", "while")
    await ear.listener.close()


async def test_a_lost_connection_is_said_at_once_and_made_again(
    ear: Ear, superuser: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for number in range(1, 4):
        end(superuser, *backends(superuser, APPLICATION))
        await ear.tells("down", "up")
        notify(superuser, "again")
        await ear.tells("again")
        assert ear.listener.losses == number
    assert caplog.text.count("gossip is not heard: ") == caplog.text.count("gossip is heard again") == 3


def test_the_loop_hears_the_next_connection_whatever_the_number_of_its_socket(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async def story() -> None:
        async with asyncio.timeout(60), listening(database_url) as ear:
            for _ in range(3):
                end(superuser, *backends(superuser, APPLICATION))
                await ear.tells("down", "up")
                notify(superuser, "again")
                await ear.tells("again")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


@pytest.mark.parametrize(("act", "told"), [(notify, "news"), (end, "down")])
async def test_what_the_socket_has_is_told_in_the_turn_of_the_loop_that_finds_it(
    ear: Ear, superuser: psycopg.Connection, act: Callable[..., None], told: str
) -> None:
    """So that no request that comes later is answered from what was believed before."""
    act(superuser, "news" if act is notify else backends(superuser, APPLICATION)[0])
    select.select([ear.listener._socket], [], [], 10)
    assert ear.told == []

    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert ear.told == [told]


async def test_a_server_that_says_nothing_is_noticed(
    ear: Ear, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "ANSWER", 0.02)
    [pid] = backends(superuser, APPLICATION)
    with frozen(pid):
        await restarted(ear, monkeypatch)
        await until(lambda: "down" in ear.told)
        monkeypatch.setattr(listen, "ANSWER", 10.0)
        # The others of this server answer, so a new connection can be made while the old one still says nothing.
        await until(lambda: ear.told[-1] == "up")
        ear.told.clear()
        notify(superuser, "news")
        await ear.tells("news")


async def restarted(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heart beats fast, and not only after the beat that has begun."""
    monkeypatch.setattr(listen, "HEARTBEAT", 0.0005)
    assert ear.listener._task is not None
    ear.listener._task.cancel()
    await asyncio.wait([ear.listener._task])
    ear.listener._task = asyncio.create_task(ear.listener._run())


async def test_a_server_that_answers_is_never_given_up_and_nothing_is_missed_while_it_is_asked(
    ear: Ear, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = 0

    class Counted(asyncio.Event):
        def clear(self) -> None:
            nonlocal beats
            beats += 1
            super().clear()

    ear.listener._spoke = Counted()
    await restarted(ear, monkeypatch)
    sent = 0
    while beats < 20 or sent < 300:
        notify(superuser, str(sent))
        sent += 1
        await asyncio.sleep(0)
    await ear.tells(*map(str, range(sent)))
    assert ear.listener.losses == 0


async def test_without_a_database_it_is_down_and_it_comes_back_with_it(
    server: embedded.Server, database_url: str, ear: Ear, superuser: psycopg.Connection
) -> None:
    with away(server, database_url):
        await ear.tells("down")
    await ear.tells("up")
    with psycopg.connect(database_url, autocommit=True) as connection:
        notify(connection, "news")
    await ear.tells("news")


async def test_whatever_keeps_it_from_connecting_it_tries_again(ear: Ear, superuser: psycopg.Connection) -> None:
    errors: list[Exception] = [OSError("no"), WrongRoleError("no"), TimeoutError(), psycopg.OperationalError("no")]

    async def connect() -> Connection:
        if errors:
            raise errors.pop()
        return await ear.connect()

    ear.listener._connect = connect
    end(superuser, *backends(superuser, APPLICATION))
    await ear.tells("down", "up")
    assert errors == []


async def test_who_could_not_take_what_was_told_has_missed_it(ear: Ear, superuser: psycopg.Connection) -> None:
    def heard(payload: str) -> None:
        ear.told.append(payload)
        if payload == "bad":
            raise KeyError(payload)

    ear.listener._heard = heard
    notify(superuser, "bad")
    await ear.tells("bad", "down", "up")
    notify(superuser, "good")
    await ear.tells("good")


async def test_who_cannot_begin_to_listen_is_told_why(
    server: embedded.Server, database_url: str, database: Database
) -> None:
    ear = Ear(database)
    with away(server, database_url), pytest.raises(psycopg.OperationalError, match="not currently accepting"):
        await ear.listener.open()
    await ear.listener.close()
    assert ear.told == []


async def test_closing_ends_it_without_a_trace(
    database_url: str, superuser: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="crafely")
    tasks = asyncio.all_tasks()
    async with listening(database_url) as ear:
        listener = ear.listener
    # What is read from now on may change unheard.
    await ear.tells("down")
    await listener.close()
    notify(superuser, "news")
    await until(lambda: backends(superuser, APPLICATION) == [])
    assert ear.told == []
    assert asyncio.all_tasks() == tasks
    assert caplog.text == ""
    assert listener.losses == 0


async def test_closing_ends_it_while_it_connects_again(
    database: Database, superuser: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    ear = Ear(database)
    await ear.listener.open()
    waiting = asyncio.Event()

    async def connect() -> Connection:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    ear.listener._connect = connect
    end(superuser, *backends(superuser, APPLICATION))
    await waiting.wait()
    # The number of the socket is the next one's, whosoever: the loop must have forgotten it.
    assert asyncio.get_running_loop().remove_reader(ear.listener._socket) is False
    async with asyncio.timeout(10):
        await ear.listener.close()
    assert ear.told == ["up", "down"]
