"""``kill -9`` of workers and of PostgreSQL under load: what was acknowledged is stored once, and nothing counts twice.

Two kills among the other tests; ``make torture`` does twenty and prints what happened.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import psycopg
import pytest
from rich import box
from rich.table import Table

from crafely.cli.tables import show
from tests.cli.conftest import crafely, new_folder, until
from tests.torture.load import Load
from tests.torture.scene import WORKERS, Scene

KILLS = int(os.environ.get("TORTURE_KILLS", "2"))
CLIENTS, USERS = 48, 4
# After that long the server would have to be restarted by hand, which is a failure.
RECOVERY_SECONDS = 60
VICTIMS = ("postmaster and worker", "worker", "backend", "postmaster")

METER = """
    select pid from pg_stat_activity
    where application_name = 'crafely meter'
    order by state = 'active' desc, random()
    limit 1
"""


class Kill(NamedTuple):
    """One of them: how many requests it met, how many records had been acknowledged, and when the next answer came."""

    victim: str
    in_flight: int
    acknowledged: int
    seconds: float


def kill(scene: Scene, victim: str) -> None:
    if "postmaster" in victim:
        os.kill(scene.postmaster, signal.SIGKILL)
    if "worker" in victim:
        # With the database gone, the one that takes its place begins without.
        os.kill(random.choice(scene.workers()), signal.SIGKILL)  # noqa: S311 - no secret
    if victim == "backend":
        # Ours would be ended with all others, so it is closed first.
        with psycopg.connect(scene.url) as connection:
            pid = next(iter(connection.execute(METER)))[0]
        os.kill(pid, signal.SIGKILL)


def repair(scene: Scene, victim: str) -> None:
    """What whoever runs the database does; the server itself is left alone."""
    if "postmaster" in victim:
        scene.start()
    assert scene.serving.process.poll() is None, scene.serving.err[-3000:]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with new_folder() as folder, ExitStack() as stack:
        scene = Scene(folder, stack, users=USERS, permissions=["usage:write"])
        yield scene
        scene.stop(RECOVERY_SECONDS)


async def torture(scene: Scene, load: Load) -> list[Kill]:
    kills = []
    for number in range(KILLS):
        await load.more(500, RECOVERY_SECONDS)
        await asyncio.sleep(random.uniform(0, 0.5))  # noqa: S311 - no secret
        victim = VICTIMS[number % len(VICTIMS)]
        await asyncio.to_thread(kill, scene, victim)
        begin, in_flight, acknowledged = time.monotonic(), load.in_flight, load.acknowledged
        await asyncio.to_thread(repair, scene, victim)
        seconds = await load.recovered(begin, RECOVERY_SECONDS)
        await asyncio.to_thread(until, lambda: len(scene.workers()) == WORKERS, "all workers")
        kills.append(Kill(victim, in_flight, acknowledged, seconds))
    await load.more(500, RECOVERY_SECONDS)
    return kills


async def test_what_is_acknowledged_survives_and_nothing_counts_twice(scene: Scene) -> None:
    async with Load(scene.serving.address, scene.keys, CLIENTS) as load:
        kills = await torture(scene, load)
    with psycopg.connect(scene.url) as connection:
        report(kills, load, load.check(connection))
    done = crafely(scene.serving.folder, "usage", "reconcile", "--json", **scene.variables)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done
    # The database's absence is told as what it is.
    assert {outcome for outcome in load.outcomes if outcome.isdigit()} <= {"201", "503"}, load.outcomes


def report(kills: list[Kill], load: Load, stored: int) -> None:
    """What happened, for who runs it with -s."""
    table = Table("kill -9", "requests in flight", "acknowledged before", "next answer after", box=box.SIMPLE_HEAD)
    for kill in kills:
        table.add_row(kill.victim, str(kill.in_flight), str(kill.acknowledged), f"{kill.seconds * 1000:.0f} ms")
    show(table)
    kinds = Counter(("with" if one.event else "without", one.acknowledged) for one in load.told.values())
    table = Table("records", "event id", "acknowledged", "not acknowledged", box=box.SIMPLE_HEAD)
    for kind in ("with", "without"):
        table.add_row("sent", kind, str(kinds[kind, True]), str(kinds[kind, False]))
    table.add_row("stored", "", str(stored), "")
    show(table)
    table = Table("requests", "count", box=box.SIMPLE_HEAD)
    for outcome, count in load.outcomes.most_common():
        table.add_row(outcome, str(count))
    show(table)
