"""Connections are lost: reads are answered all the same, writes are told, and nobody waits for ever."""

import asyncio
from typing import Any

import psycopg
import pytest

from crafely.db import embedded
from crafely.db.session import DatabaseUnavailableError
from tests.db.harm import Halves, away, backends, end, frozen
from tests.db.lines import APPLICATION, ECHO, STORE, Stored, echoes, hold, in_flight, line
from tests.db.statements import until

# Of what happens behind a pooler tests/db/test_pooler.py tells.
direct = pytest.mark.direct(reason="behind a pooler the end of an idle connection is not the client's")


@pytest.fixture
def stored(superuser: psycopg.Connection) -> Stored:
    """What has been stored."""
    return Stored(superuser)


@direct
@pytest.mark.parametrize("text", [ECHO, STORE], ids=["read", "write"])
async def test_a_connection_that_was_lost_while_it_was_idle_fails_nobody(
    database_url: str, superuser: psycopg.Connection, stored: Stored, text: str
) -> None:
    async with line(database_url, text, channels=2) as one:
        end(superuser, *backends(superuser, APPLICATION))
        await until(lambda: all(channel.lost for channel in one.channels))
        answers = await one.ask_all("a", "b")
        assert answers == (echoes("a", "b") if text == ECHO else ["a", "b"])
        assert one.sender.sizes == [2]
        assert stored() == ([] if text == ECHO else ["a", "b"])


async def test_reads_whose_connection_is_lost_are_answered_on_the_next(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url) as one:
        with hold(superuser):
            answers = one.ask_all("a", "b")
            await in_flight(superuser)
            end(superuser, *backends(superuser, APPLICATION))
            await in_flight(superuser)
        assert await answers == echoes("a", "b")
        assert one.sender.batches == [["a", "b"]] * 2


async def test_reads_that_lose_their_connection_twice_are_told(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url) as one:
        with hold(superuser):
            answers = one.ask_all("a", "b")
            for _ in range(2):
                await in_flight(superuser)
                end(superuser, *backends(superuser, APPLICATION))
            assert {type(answer) for answer in await answers} == {psycopg.errors.AdminShutdown}
        assert await one.ask("next") == "<next>"


async def test_writes_whose_connection_is_lost_are_told_and_never_sent_twice(
    database_url: str, superuser: psycopg.Connection, stored: Stored
) -> None:
    async with line(database_url, STORE) as one:
        with hold(superuser):
            answers = one.ask_all("a", "b")
            await in_flight(superuser)
            waiting = one.ask("waits")
            end(superuser, *backends(superuser, APPLICATION))
            assert {type(answer) for answer in await answers} == {psycopg.errors.AdminShutdown}
        # Who had not been sent is none the worse.
        assert await waiting == "waits"
        assert one.sender.batches == [["a", "b"], ["waits"]]
        assert stored() == ["waits"]


async def test_a_write_whose_answer_is_lost_is_told_and_stored_once(database_url: str, stored: Stored) -> None:
    """It has happened, and nobody on this side can know: sent again it would be stored twice."""
    halves = Halves(database_url)
    with halves.between() as url:
        async with line(url, STORE) as one:
            assert await one.ask("first") == "first"
            halves.keep.set()
            second = one.ask("second")
            await until(halves.kept.is_set)
            halves.cut()
            with pytest.raises(psycopg.OperationalError):
                await second
            assert await one.ask("third") == "third"
    assert stored() == ["first", "second", "third"]


async def test_a_server_that_says_nothing_is_given_up_and_reads_are_answered_by_the_next(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url) as one:
        assert await one.ask("a") == "<a>"
        [pid] = backends(superuser, APPLICATION)
        channel = one.channels[0]
        connect, usual = channel._connect, channel._seconds

        async def patient() -> Any:
            channel._seconds = usual
            return await connect()

        with frozen(pid):
            channel._connect, channel._seconds = patient, 0.1
            assert await one.ask("b") == "<b>"


@direct
async def test_without_a_database_every_caller_is_told_and_with_it_everything_works_again(
    server: embedded.Server, database_url: str
) -> None:
    async with line(database_url, channels=2) as one:
        assert await one.ask("before") == "<before>"
        with away(server, database_url):
            for _ in range(3):
                async with asyncio.timeout(20):
                    answers = await one.ask_all(*range(200))
                assert {type(answer) for answer in answers} == {DatabaseUnavailableError}
                assert "not currently accepting connections" in str(answers[0])
                assert "\n" not in str(answers[0])
        # A worker that was turned away in the last moment says so in the next.
        async with asyncio.timeout(20):
            while await one.ask_all("back") != ["<back>"]:
                pass
        for _ in range(10):
            assert await one.ask_all(*range(200)) == echoes(*range(200))


@direct
@pytest.mark.parametrize("error", [RuntimeError("as somebody else"), TimeoutError(), OSError("no")])
async def test_whatever_keeps_a_connection_from_being_made_is_told_and_tried_again(
    database_url: str, superuser: psycopg.Connection, error: Exception
) -> None:
    async with line(database_url) as one:
        connect = one.channels[0]._connect

        async def refuse() -> Any:
            raise error

        one.channels[0]._connect = refuse
        end(superuser, *backends(superuser, APPLICATION))
        await until(lambda: one.channels[0].lost)
        with pytest.raises(DatabaseUnavailableError, match=str(error) or "TimeoutError"):
            await one.ask("a")
        one.channels[0]._connect = connect
        assert await one.ask("b") == "<b>"


@direct
@pytest.mark.parametrize("number", [0, 1])
async def test_a_connection_that_cannot_be_made_fails_nobody_while_another_works(
    database_url: str, superuser: psycopg.Connection, number: int
) -> None:
    async with line(database_url, channels=2) as one:
        tried = 0

        async def refuse() -> Any:
            nonlocal tried
            tried += 1
            raise psycopg.OperationalError("too many connections")

        broken = one.channels[number]
        assert broken._connection is not None
        broken._connect, pid = refuse, broken._connection.info.backend_pid
        end(superuser, pid)
        await until(lambda: broken.lost)
        with hold(superuser):
            # Whoever is told to look first, the other has it.
            first = one.ask("first")
            await in_flight(superuser)
            others = one.ask_all(*range(1000))
            await until(lambda: tried >= 3)
        assert await first == "<first>"
        assert await others == echoes(*range(1000))


async def test_who_waits_too_long_for_a_connection_is_told_and_who_is_sent_is_not(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url, seconds=0.4) as one:
        with hold(superuser):
            first = one.ask("sent")
            await in_flight(superuser)
            waiting = [one.ask(str(number)) for number in range(3)]
            for future in waiting:
                with pytest.raises(DatabaseUnavailableError, match="no connection became free"):
                    await future
            later = one.ask("later")
        assert await first == "<sent>"
        assert await later == "<later>"
        assert one.sender.batches == [["sent"], ["later"]]
