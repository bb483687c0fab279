"""Many callers, one statement in flight: each gets its own answer, whatever becomes of the others."""

import asyncio
import itertools

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crafely.db.coalesce import QueueFullError
from crafely.db.query import Executor
from tests.db.harm import backends
from tests.db.lines import APPLICATION, STORE, Stored, echoes, hold, in_flight, line
from tests.db.statements import until


@pytest.fixture
def stored(superuser: psycopg.Connection) -> Stored:
    """What has been stored."""
    return Stored(superuser)


async def test_a_caller_alone_is_answered(database_url: str) -> None:
    async with line(database_url) as one:
        assert await one.ask("a") == "<a>"
        assert await one.ask("é 漢 {,}") == "<é 漢 {,}>"
        assert one.sender.sizes == [1, 1]
        assert (one.coalescer.items, one.coalescer.batches, one.coalescer.waiting) == (2, 2, 0)


async def test_who_comes_while_a_statement_is_in_flight_shares_the_next(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url) as one:
        with hold(superuser):
            first = one.ask("first")
            await in_flight(superuser)
            others = one.ask_all(*range(50))
            assert one.coalescer.waiting == 50
        assert await first == "<first>"
        assert await others == echoes(*range(50))
        assert one.sender.sizes == [1, 50]


async def test_a_connection_has_one_statement_in_flight_and_each_has_one(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url, channels=2) as one:
        with hold(superuser):
            first = one.ask("1")
            await in_flight(superuser)
            second = one.ask("2")
            await in_flight(superuser, 2)
            others = one.ask_all(*range(10))
            # Whoever could send has had his turn.
            for _ in range(10):
                await asyncio.sleep(0)
            assert (one.coalescer.waiting, one.sender.sizes) == (10, [1, 1])
        assert [await first, await second, *await others] == echoes(1, 2, *range(10))
        assert one.sender.most_at_once == 2


async def test_a_batch_is_bounded_and_the_order_is_that_of_coming(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url, batch=8) as one:
        with hold(superuser):
            first = one.ask("first")
            await in_flight(superuser)
            others = one.ask_all(*range(20))
        assert [await first, *await others] == echoes("first", *range(20))
        assert one.sender.sizes == [1, 8, 8, 4]
        assert [item for batch in one.sender.batches[1:] for item in batch] == [str(n) for n in range(20)]


async def test_the_queue_is_bounded_and_who_finds_it_full_harms_nobody(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url, queue=5) as one:
        with hold(superuser):
            first = one.ask("first")
            await in_flight(superuser)
            others = one.ask_all(*range(5))
            for _ in range(3):
                with pytest.raises(QueueFullError, match="5 wait already"):
                    one.ask("too many")
        assert [await first, *await others] == echoes("first", *range(5))
        assert await one.ask("later") == "<later>"
        assert "too many" not in [item for batch in one.sender.batches for item in batch]


async def test_a_thousand_callers_at_once_get_each_his_own_answer(database_url: str) -> None:
    async with line(database_url, channels=2) as one:
        assert await one.ask_all(*range(1000)) == echoes(*range(1000))
        assert sum(one.sender.sizes) == 1000
        assert len(one.sender.sizes) <= 10


# Refused by a constraint, by the type, and by the client: what is not text cannot be sent.
BAD: dict[str, type[Exception]] = {
    "refused": psycopg.errors.CheckViolation,
    "a\0b": psycopg.DataError,
    "\ud800": UnicodeEncodeError,
}
_numbers = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(st.sampled_from(["good"] * 6 + list(BAD)), min_size=1, max_size=40))
async def test_a_bad_item_fails_alone_and_the_good_ones_are_stored_once(
    database_url: str, stored: Stored, items: list[str]
) -> None:
    items = [f"good {next(_numbers):09}" if item == "good" else item for item in items]
    async with line(database_url, STORE) as one:
        before = stored()
        answers = await one.ask_all(*items)
        assert one.sender.sizes[0] == len(items)

    for item, answer in zip(items, answers, strict=True):
        assert isinstance(answer, BAD[item]) if item in BAD else answer == item
    assert stored() == before + [item for item in items if item not in BAD]


async def test_a_statement_that_fails_for_all_is_told_to_all_and_to_nobody_after_them(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url, limit=0.4) as one:
        with hold(superuser):
            answers = await one.ask_all(*range(5))
            assert {type(answer) for answer in answers} == {psycopg.errors.LockNotAvailable}
        assert await one.ask_all(*range(5)) == echoes(*range(5))


async def test_answers_that_are_too_few_are_an_error_and_nobody_waits_for_ever(database_url: str) -> None:
    async with line(database_url) as one:
        one.coalescer._send = answer_one
        assert [type(answer) for answer in await one.ask_all(1, 2, 3)] == [RuntimeError] * 3
        one.coalescer._send = one.sender
        assert await one.ask("next") == "<next>"


async def answer_one(_: Executor, items: list[str]) -> list[str]:
    return items[:1]


async def test_who_gives_up_while_he_waits_is_not_sent_and_reaches_nobody_else(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url) as one:
        with hold(superuser):
            first = one.ask("first")
            await in_flight(superuser)
            others = {item: one.ask(item) for item in ("a", "b", "c", "d")}
            others["b"].cancel()
            only = [one.ask("x"), others.pop("b")]
            only[0].cancel()
        assert await first == "<first>"
        assert await asyncio.gather(*others.values()) == echoes("a", "c", "d")
        assert one.sender.batches == [["first"], ["a", "c", "d"]]
        assert all(future.cancelled() for future in only)


async def test_where_all_have_given_up_nothing_is_sent(database_url: str, superuser: psycopg.Connection) -> None:
    async with line(database_url) as one:
        with hold(superuser):
            first = one.ask("first")
            await in_flight(superuser)
            one.ask("gone").cancel()
        assert await first == "<first>"
        assert await one.ask("next") == "<next>"
        assert one.sender.batches == [["first"], ["next"]]


async def test_who_gives_up_when_he_has_been_sent_reaches_nobody_else(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url) as one:
        [pid] = backends(superuser, APPLICATION)
        with hold(superuser):
            asked = [one.ask(item) for item in ("a", "b", "c")]
            await in_flight(superuser)
            asked[1].cancel()
        assert [await asked[0], await asked[2]] == echoes("a", "c")
        assert await one.ask("next") == "<next>"
        assert backends(superuser, APPLICATION) == [pid]


@pytest.mark.direct(reason="a pooler keeps the server's connections when ours are closed")
async def test_closing_answers_who_waits_and_nobody_may_come_any_more(
    database_url: str, superuser: psycopg.Connection
) -> None:
    async with line(database_url, channels=2, batch=4) as one:
        with hold(superuser):
            first = one.ask("first")
            await in_flight(superuser)
            others = one.ask_all(*range(20))
            closing = asyncio.create_task(one.coalescer.close())
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError):
                one.ask("late")
        assert [await first, *await others] == echoes("first", *range(20))
        await closing
        await until(lambda: backends(superuser, APPLICATION) == [])
