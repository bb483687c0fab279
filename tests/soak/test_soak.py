"""A mixed load over HTTP at half of what the machine can do, for minutes; every answer is looked at, nothing is lost.

With a fault every so many seconds, and without. Some seconds of both among the other tests; ``make soak`` takes ten
minutes and prints what was seen.
"""

import asyncio
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import psycopg
import pytest
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crafely.cli.tables import show
from tests.cli.conftest import crafely, new_folder
from tests.soak import timeline
from tests.soak.answers import Answers, Busy
from tests.soak.havoc import WORKER_KILLED, Havoc
from tests.soak.tenant import KEYS_IN_USE, Tenant
from tests.torture.scene import WORKERS, Scene

MINUTES = float(os.environ.get("SOAK_MINUTES", "0.15"))
# Seconds from one fault to the next; 0: none. Among the other tests both are tried.
FAULTS = [float(text) for text in os.environ.get("SOAK_FAULTS", "0,3").split(",")]
SEED = int(os.environ.get("SOAK_SEED", "2"))
# Where the picture is written to; nowhere if it is not said.
PICTURE = os.environ.get("SOAK_PICTURE")
TENANTS = 16
# For how long it is measured what the machine can do, in seconds: a tenth of the load, a minute at most.
MEASURE = min(60.0, MINUTES * 60 / 4)
# A load of some seconds is a small one, and its measure none.
SHORT = MINUTES < 0.5
SMALL_RATE = 200.0
SAMPLE_SECONDS = min(5.0, MINUTES * 60 / 20)
STOP_SECONDS = 60
COSTLIEST = 5
# How long who was told to come back stays away.
BUSY_SECONDS = 1.0
# A worker that is killed takes its connections along, some of which are noticed later.
LOST_SECONDS = 10
# How many keys a worker remembers: more than are in use at any time, and few enough that they are all there after a
# minute. By default it is a hundred thousand, and a worker grows until it has met them.
KEYS_KEPT = 2 * TENANTS * KEYS_IN_USE
# What a worker may come to hold in a minute, and in all: so many MB. Growth is looked at in stretches of two minutes
# and more, a minute after workers began: where one is killed its clients, and so its work, move to others.
GROWTH, CEILING = 0.5, 96
WARM_SECONDS, GROWN_SECONDS = 60, 120
# The two round differently.
ROUNDING_MS = 0.01

COSTS = """
    select substring(s.query from 'crafely:(\\w+/\\w+)') as name, sum(s.calls)::bigint, sum(s.total_exec_time)
    from pg_stat_statements s
    join pg_database d on d.oid = s.dbid
    where d.datname = current_database()
        and s.query ~ '/\\* crafely:\\w+/\\w+ \\*/'
        -- The desk looks at itself, too, and has not yet counted the look that is shown.
        and s.query !~ 'crafely:monitor/'
    group by name
    order by 3 desc
"""


class Memory:
    """What the workers hold, in MB that are theirs alone, since the load began or they did."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.samples: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        self._begin = time.monotonic()

    async def watch(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        for pid in self._scene.workers():
            with suppress(FileNotFoundError):  # it has just been killed
                found = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                if found:
                    self.samples[pid].append((time.monotonic() - self._begin, int(found[0]) / 1024))

    def stretches(self) -> Iterator[tuple[int, list[tuple[float, float]]]]:
        """Each worker's samples between two moments at which a worker began, but for the first minute of them."""
        began = sorted(samples[0][0] for samples in self.samples.values())
        for pid, samples in self.samples.items():
            for begin, end in pairwise([*began, math.inf]):
                span = [sample for sample in samples if begin + WARM_SECONDS <= sample[0] < end]
                if span and span[-1][0] - span[0][0] >= GROWN_SECONDS:
                    yield pid, span

    @staticmethod
    def slope(samples: Sequence[tuple[float, float]]) -> float:
        """MB a minute, by least squares."""
        middle = sum(at for at, _ in samples) / len(samples)
        mean = sum(size for _, size in samples) / len(samples)
        spread = sum((at - middle) ** 2 for at, _ in samples)
        return 60 * sum((at - middle) * (size - mean) for at, size in samples) / spread if spread else 0.0


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with new_folder() as folder, ExitStack() as stack:
        # Others for each load, and one more to see whether anybody is served.
        users = TENANTS * len(FAULTS) + 1
        settings = {"CRAFELY_KEY_CACHE_SIZE": str(KEYS_KEPT)}
        scene = Scene(folder, stack, users=users, permissions=["*"], settings=settings)
        with psycopg.connect(scene.url) as connection:
            connection.execute("create extension if not exists pg_stat_statements")
        yield scene
        scene.stop(STOP_SECONDS)


async def load(tenants: Sequence[Tenant], seconds: float, pause: float) -> None:
    """Has all tenants work for so long, each with an operation in so many seconds at most."""

    async def work(tenant: Tenant) -> None:
        due = time.monotonic()
        end = due + seconds
        while (now := time.monotonic()) < end:
            # What was held up is not made up for in a burst.
            due = max(due + pause, now)
            try:
                await tenant.something()
            except Busy:
                await asyncio.sleep(BUSY_SECONDS)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async with asyncio.TaskGroup() as group:
        for tenant in tenants:
            group.create_task(work(tenant))


@pytest.mark.parametrize("faults", FAULTS)
async def test_a_mixed_load_is_answered_right_and_loses_nothing(scene: Scene, faults: float) -> None:
    answers = Answers(scene.serving.address, faults=faults > 0)
    havoc = Havoc(scene, answers, SEED)
    first = TENANTS * FAULTS.index(faults)
    numbers = range(first, first + TENANTS)
    tenants = [Tenant(answers, scene.keys[number], number) for number in numbers]
    try:
        for tenant in tenants:
            tenant.others = [other for other in tenants if other is not tenant]
            await tenant.begin()
        capacity = await measure(answers, tenants)
        answers.start()
        pids, memory, before = scene.workers(), Memory(scene), answers.count
        assert len(pids) == WORKERS
        watching = asyncio.create_task(memory.watch())
        with progress(havoc):
            async with asyncio.TaskGroup() as group:
                group.create_task(load(tenants, MINUTES * 60, 2 * TENANTS / capacity))
                if faults:
                    group.create_task(havoc.go_on(faults, MINUTES * 60))
        watching.cancel()
        memory.sample()
        report(answers, capacity, (answers.count - before) / MINUTES / 60, memory, havoc)
        for tenant in tenants:
            await tenant.read_everything_back()
    finally:
        await answers.close()
    assert answers.statuses.keys() <= {200, 201, 204, 404, 409, 412, 422, 503}
    check_what_is_stored(scene, tenants, [f"user_{number}" for number in numbers], answers)
    check_the_lost(answers, havoc)
    check_the_memory(memory)
    if not faults:
        # The same processes: none of them died and came back.
        assert scene.workers() == pids
        assert '"level":"error"' not in scene.serving.err
        check_the_costliest(scene)


async def measure(answers: Answers, tenants: Sequence[Tenant]) -> float:
    """How many requests a second the machine can do."""
    if SHORT:
        return SMALL_RATE
    before = answers.count
    await load(tenants, MEASURE, 0)
    return (answers.count - before) / MEASURE


@contextmanager
def progress(havoc: Havoc) -> Iterator[None]:
    """Shows how far it is, and which fault there is, to who looks."""
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=SHORT) as bar:
        task = bar.add_task("", total=MINUTES * 60)
        begin = time.monotonic()

        def show_it() -> None:
            bar.update(task, completed=time.monotonic() - begin, description=havoc.now)
            handle[0] = asyncio.get_running_loop().call_later(1, show_it)

        handle = [asyncio.get_running_loop().call_soon(show_it)]
        try:
            yield
        finally:
            handle[0].cancel()


AUDITED = "select request_id from audit_log where request_id is not null"


def check_what_is_stored(scene: Scene, tenants: Sequence[Tenant], users: list[str], answers: Answers) -> None:
    """Nothing that was acknowledged is missing, nothing is there that was not, and every change is in the audit."""
    with psycopg.connect(scene.url) as connection:
        rows = connection.execute("select id from usage where user_id = any(%s)", [users])
        stored = [id_ for (id_,) in rows]
        audited = {id_ for (id_,) in connection.execute(AUDITED)}
    acknowledged = {id_ for tenant in tenants for id_ in tenant.mirror.usage_ids}
    assert len(stored) == len(set(stored))
    assert set(stored) == acknowledged
    assert answers.changes <= audited
    done = crafely(scene.serving.folder, "usage", "reconcile", "--json", **scene.variables)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done
    done = crafely(scene.serving.folder, "audit", "verify", **scene.variables)
    assert done.returncode == 0, done
    assert "a request failed unexpectedly" not in scene.serving.err


def check_the_lost(answers: Answers, havoc: Havoc) -> None:
    """A connection is lost with its worker and never otherwise: whatever befalls the database, there is an answer."""
    kills = [answers.began + fault.at for fault in havoc.done if fault.name == WORKER_KILLED]
    assert [at for at in answers.lost if not any(kill <= at <= kill + LOST_SECONDS for kill in kills)] == []


def check_the_memory(memory: Memory) -> None:
    """It does not grow with what was served."""
    assert max(size for samples in memory.samples.values() for _, size in samples) < CEILING
    for _, samples in memory.stretches():
        assert memory.slope(samples) < GROWTH, samples


def is_own(name: str) -> bool:
    return name.startswith("monitor/")


def costs(scene: Scene) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds by file, the costliest first: what pg_stat_statements says itself."""
    with psycopg.connect(scene.url) as connection:
        return {name: (calls, total) for name, calls, total in connection.execute(COSTS)}


def check_the_costliest(scene: Scene) -> None:
    """The desk names the files that pg_stat_statements has as the costliest, in their order.

    Housekeeping goes on: what the desk says lies between what was there before it looked and what is there afterwards.
    """
    before = costs(scene)
    done = crafely(scene.serving.folder, "monitor", "--once", "--json", **scene.variables)
    after = costs(scene)
    # 1 where an alert needs somebody, which is not what is looked at here.
    assert done.returncode in {0, 1}, done
    desk = [one for one in msgspec.json.decode(done.stdout)["queries"]["data"] if not is_own(one["statement"])]
    named = {one["statement"]: one["totalMs"] for one in desk[:COSTLIEST]}

    table = Table("", "pg_stat_statements", "calls", "ms", "crafely monitor", "calls", "ms", box=box.SIMPLE_HEAD)
    for place, ((name, (calls, total)), one) in enumerate(zip(after.items(), desk[:COSTLIEST], strict=False), 1):
        ours = [name, f"{calls:,}", f"{total:,.0f}"]
        table.add_row(str(place), *ours, one["statement"], f"{one['calls']:,}", f"{one['totalMs']:,.0f}")
    show(table)

    assert len(named) == COSTLIEST
    assert list(named.values()) == sorted(named.values(), reverse=True)
    for name, total in named.items():
        assert before[name][1] - ROUNDING_MS <= total <= after[name][1] + ROUNDING_MS, name
    # And none that it does not name had cost more.
    others = {name: total for name, (_, total) in before.items() if name not in named}
    assert max(others.values()) <= min(named.values()) + ROUNDING_MS, others


def report(answers: Answers, capacity: float, rate: float, memory: Memory, havoc: Havoc) -> None:
    """What happened, for who runs it with -s."""
    sentences = [
        f"{MINUTES:g} minutes, {TENANTS} users, {WORKERS} workers, {len(havoc.done)} faults (seed {SEED})",
        f"{capacity:,.0f} requests/s were possible, {rate:,.0f} made",
        "statuses: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(answers.statuses.items())),
        "not served: " + (", ".join(f"{why}: {count:,}" for why, count in answers.refusals.most_common()) or "none"),
        f"{len(answers.changes):,} changes were acknowledged at the first time, and all of them are in the audit",
    ]
    table = Table(show_header=False, box=None)
    for sentence in sentences:
        table.add_row(sentence)
    show(table)
    if havoc.done:
        columns = ("fault", "times", "served again after, s", "503s", "connections lost")
        table = Table(*columns, box=box.SIMPLE_HEAD)
        for name, faults in havoc.by_kind().items():
            longest = max(fault.recovery for fault in faults)
            counts = [sum(fault.refused for fault in faults), sum(fault.lost for fault in faults)]
            table.add_row(name, str(len(faults)), f"{longest:.2f}", *(f"{count:,}" for count in counts))
        show(table)
        if PICTURE:
            Path(PICTURE).write_text(timeline.picture(answers.timeline, havoc.done))
    table = Table("operation", "requests", "p50 ms", "p99 ms", "slowest ms", box=box.SIMPLE_HEAD)
    for name, seconds in sorted(answers.seconds.items()):
        times = sorted(seconds)
        figures = [times[int(len(times) * part)] for part in (0.5, 0.99)]
        table.add_row(name, f"{len(times):,}", *(f"{1000 * one:.1f}" for one in [*figures, times[-1]]))
    show(table)
    table = Table("worker", "from s", "to s", "MB at first", "at last", "most", box=box.SIMPLE_HEAD)
    for pid, samples in memory.samples.items():
        sizes = [samples[0][1], samples[-1][1], max(size for _, size in samples)]
        table.add_row(str(pid), *(f"{samples[at][0]:.0f}" for at in (0, -1)), *(f"{size:.1f}" for size in sizes))
    show(table)
    table = Table(
        "worker", "between kills, from s", "to s", "MB at first", "at last", "MB a minute", box=box.SIMPLE_HEAD
    )
    for pid, samples in memory.stretches():
        ends = [f"{samples[at][0]:.0f}" for at in (0, -1)] + [f"{samples[at][1]:.1f}" for at in (0, -1)]
        table.add_row(str(pid), *ends, f"{memory.slope(samples):+.2f}")
    show(table)
