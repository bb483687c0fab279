import asyncio
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import crafely
from crafely.auth.hashing import Busy, Hasher
from crafely.config import Settings, SettingsError

Make = Callable[..., Hasher]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Hasher] = []

    def make(**settings: Any) -> Hasher:
        made.append(Hasher(Settings(**settings)))
        return made[-1]

    yield make
    for hasher in made:
        hasher.close()


class Gate:
    """Holds up a hasher's only thread, so that a test decides when the queue moves."""

    def __init__(self, hasher: Hasher) -> None:
        self._event = threading.Event()
        hasher._pool.submit(self._event.wait)

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self._event.set()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def refused(work: Awaitable[object]) -> None:
    """Expect Busy, and at once: work that waits would wait for a gate that this test holds."""
    async with asyncio.timeout(10):
        with pytest.raises(Busy):
            await work


async def test_the_right_secret_fits_and_no_other(make: Make) -> None:
    hasher = make()
    hashed = await hasher.hash("a secret")
    assert hashed.startswith("$argon2id$v=19$m=8192,t=1,p=1$")
    assert hashed != await hasher.hash("a secret")
    assert await hasher.verify(hashed, "a secret") == (True, False)
    assert await hasher.verify(hashed, "another") == (False, False)
    assert await hasher.verify(hashed, "") == (False, False)


async def test_a_hash_made_with_other_parameters_is_outdated_but_only_for_its_holder(make: Make) -> None:
    hashed = await make().hash("a secret")
    stronger = make(argon2_time_cost=2)
    assert await stronger.verify(hashed, "a secret") == (True, True)
    assert await stronger.verify(hashed, "another") == (False, False)


async def test_an_unknown_key_costs_a_hash_of_todays_parameters(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = make(argon2_time_cost=3, argon2_memory_kib=64)
    verified: list[str | bytes] = []
    verify = type(hasher._argon2).verify

    def spy(self: Any, hashed: str | bytes, secret: str) -> bool:
        verified.append(hashed)
        return verify(self, hashed, secret)

    monkeypatch.setattr(type(hasher._argon2), "verify", spy)
    assert await hasher.verify(None, "a secret") == (False, False)
    assert str(verified[0]).startswith("$argon2id$v=19$m=64,t=3,p=1$")
    # Even who could guess the dummy's secret gets no yes.
    hasher._dummy = await hasher.hash("guessed")
    assert await hasher.verify(None, "guessed") == (False, False)
    assert len(verified) == 2


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "x",
        "$2b$12$abcdefghijklmnopqrstuv",
        "$argon2id$v=19$m=8,t=1,p=1$",
        "$argon2id$",
        "$argon2id$v=19$m=8,t=1,p=1$é$é",
        "$argon2id$v=19$m=x,t=1,p=1$c2FsdHNhbHQ$aGFzaA",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$!!!!",
    ],
)
async def test_a_broken_hash_in_the_database_is_logged_and_fits_nothing(
    make: Make, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await make().verify(broken, "a secret") == (False, False)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "not an argon2 hash" in record.getMessage()
    assert record.exc_info is None
    assert "a secret" not in caplog.text
    assert not broken or broken == "x" or broken not in caplog.text


async def test_the_loop_runs_on_while_hashes_run(make: Make) -> None:
    hasher = make(argon2_memory_kib=64 * 1024, argon2_time_cost=2)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    # One at a time: between two hashes the loop turns a few times anyway, within one only if nothing holds it up.
    for _ in range(3):
        ticks = 0
        await hasher.hash("a secret")
        assert ticks > 100
    quick = make()
    ticks = 0
    hashes = await asyncio.gather(*(quick.hash(f"secret {n}") for n in range(64)))
    assert ticks > 640
    ticker.cancel()
    assert len(set(hashes)) == 64


async def test_who_comes_to_a_full_queue_is_told_at_once(make: Make) -> None:
    hasher = make(argon2_threads=1, argon2_queue=2)
    with Gate(hasher):
        admitted = [asyncio.create_task(hasher.hash("a secret")) for _ in range(3)]
        await settle()
        for _ in range(2):
            await refused(hasher.hash("a secret"))
        await refused(hasher.verify(None, "a secret"))
    assert all(hashed.startswith("$argon2id$") for hashed in await asyncio.gather(*admitted))
    assert await hasher.hash("a secret")


async def test_a_waiter_that_goes_away_gives_its_slot_back_exactly_once(make: Make) -> None:
    hasher = make(argon2_threads=1, argon2_queue=2)
    for _ in range(5):
        with Gate(hasher):
            tasks = [asyncio.create_task(hasher.hash("a secret")) for _ in range(3)]
            await settle()
            tasks[1].cancel()
            await settle()
            tasks.append(asyncio.create_task(hasher.hash("a secret")))
            await settle()
            await refused(hasher.hash("a secret"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, str) for result in results] == [True, False, True, True]
        assert isinstance(results[1], asyncio.CancelledError)


async def test_a_slot_stays_taken_while_its_hash_runs_though_its_waiter_went_away(make: Make) -> None:
    hasher = make(argon2_threads=1, argon2_queue=1)
    running, go_on = threading.Event(), threading.Event()

    def work() -> None:
        running.set()
        go_on.wait()

    task = asyncio.create_task(hasher._run(work))
    await asyncio.to_thread(running.wait)
    try:
        task.cancel()
        await asyncio.wait([task])
        queued = asyncio.create_task(hasher.hash("a secret"))
        await settle()
        await refused(hasher.hash("a secret"))
    finally:
        go_on.set()
    assert await queued
    both = await asyncio.gather(hasher.hash("a secret"), hasher.hash("a secret"))
    assert len(both) == 2


async def test_a_failing_hash_gives_its_slot_back(make: Make) -> None:
    hasher = make(argon2_threads=1, argon2_queue=1)
    for _ in range(5):
        with pytest.raises(UnicodeEncodeError):
            await hasher.hash("\ud800")
    assert await hasher.hash("a secret")


async def test_a_closed_hasher_hashes_no_more() -> None:
    hasher = Hasher(Settings())
    hasher.close()
    for _ in range(1000):
        with pytest.raises(RuntimeError, match="shutdown"):
            await hasher.hash("a secret")


def test_parameters_that_argon2_refuses_are_named() -> None:
    with pytest.raises(SettingsError, match=r"CRAFELY_ARGON2_.*at least 8 KiB for each lane"):
        Hasher(Settings(argon2_memory_kib=8, argon2_parallelism=4))


def test_no_memory_is_busy_and_not_a_wrong_secret() -> None:
    # In a process of its own, with no room for the gibibyte that this hash asks for.
    program = """
        import asyncio, resource
        from crafely.auth.hashing import Busy, Hasher
        from crafely.config import Settings

        async def main():
            hasher = Hasher(Settings())
            await hasher.hash("start the threads")
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20, resource.RLIM_INFINITY))
            greedy = (await hasher.hash("a secret")).replace("m=8192", "m=1048576")
            try:
                print(await hasher.verify(greedy, "a secret"))
            except Busy as error:
                print("busy:", error)
            hasher.close()

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(crafely.__file__).parents[1],
    )
    assert done.stdout == "busy: argon2: Memory allocation error\n"
