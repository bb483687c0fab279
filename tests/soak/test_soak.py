"""A mixed load over HTTP at half of what the machine can do, for minutes; every answer is looked at, nothing is lost.

Some seconds among the other tests; ``make soak`` takes ten minutes and prints what was seen.
"""

import asyncio
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psycopg
import pytest
from rich import box
from rich.table import Table

from crafely.cli.tables import show
from tests.cli.conftest import crafely, new_folder
from tests.soak.answers import Answers, Busy
from tests.soak.tenant import Tenant
from tests.torture.scene import WORKERS, Scene

MINUTES = float(os.environ.get("SOAK_MINUTES", "0.15"))
TENANTS = 16
# For how long it is measured what the machine can do, in seconds: a tenth of the load, a minute at most.
MEASURE = min(60.0, MINUTES * 60 / 4)
SAMPLE_SECONDS = min(5.0, MINUTES * 60 / 20)
STOP_SECONDS = 60
COSTLIEST = 5
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
    """What the workers hold, in MB that are theirs alone, since the load began."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.samples: dict[int, list[tuple[float, float]]] = {pid: [] for pid in pids}
        self._begin = time.monotonic()

    async def watch(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        for pid, samples in self.samples.items():
            (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            samples.append((time.monotonic() - self._begin, int(kilobytes) / 1024))

    @staticmethod
    def slope(samples: Sequence[tuple[float, float]]) -> float:
        """MB a minute in the second half, by least squares: until then caches and pools fill."""
        late = samples[len(samples) // 2 :]
        middle = sum(at for at, _ in late) / len(late)
        mean = sum(size for _, size in late) / len(late)
        spread = sum((at - middle) ** 2 for at, _ in late)
        return 60 * sum((at - middle) * (size - mean) for at, size in late) / spread if spread else 0.0


@pytest.fixture
def scene() -> Iterator[Scene]:
    with new_folder() as folder, ExitStack() as stack:
        scene = Scene(folder, stack, users=TENANTS, permissions=["*"])
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
                await asyncio.sleep(1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async with asyncio.TaskGroup() as group:
        for tenant in tenants:
            group.create_task(work(tenant))


async def test_a_mixed_load_is_answered_right_and_loses_nothing(scene: Scene) -> None:
    answers = Answers(scene.serving.address)
    tenants = [Tenant(answers, token, number) for number, token in enumerate(scene.keys)]
    try:
        for tenant in tenants:
            tenant.others = [other for other in tenants if other is not tenant]
            await tenant.begin()
        before = answers.count
        await load(tenants, MEASURE, 0)
        capacity = (answers.count - before) / MEASURE
        answers.seconds.clear()
        pids = scene.workers()
        assert len(pids) == WORKERS
        memory = Memory(pids)
        before = answers.count
        watching = asyncio.create_task(memory.watch())
        await load(tenants, MINUTES * 60, 2 * TENANTS / capacity)
        watching.cancel()
        memory.sample()
        report(answers, capacity, (answers.count - before) / MINUTES / 60, memory)
        for tenant in tenants:
            await tenant.read_everything_back()
    finally:
        await answers.close()
    # The same processes: none of them died and came back.
    assert scene.workers() == pids
    assert answers.statuses.keys() <= {200, 201, 204, 404, 422, 503}
    check_what_is_stored(scene, tenants)
    check_the_costliest(scene)


def check_what_is_stored(scene: Scene, tenants: Sequence[Tenant]) -> None:
    with psycopg.connect(scene.url) as connection:
        stored = [id_ for (id_,) in connection.execute("select id from usage")]
    acknowledged = {id_ for tenant in tenants for id_ in tenant.mirror.usage_ids}
    assert len(stored) == len(set(stored))
    assert set(stored) == acknowledged
    done = crafely(scene.serving.folder, "usage", "reconcile", "--json", **scene.variables)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done
    assert '"level":"error"' not in scene.serving.err


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


def report(answers: Answers, capacity: float, rate: float, memory: Memory) -> None:
    """What happened, for who runs it with -s."""
    sentences = [
        f"{MINUTES:g} minutes, {TENANTS} users, {WORKERS} workers",
        f"{capacity:,.0f} requests/s were possible, {rate:,.0f} made",
        "statuses: " + ", ".join(f"{status}: {count:,}" for status, count in sorted(answers.statuses.items())),
    ]
    show(Table(*sentences, box=None))
    table = Table("operation", "requests", "p50 ms", "p99 ms", "slowest ms", box=box.SIMPLE_HEAD)
    for name, seconds in sorted(answers.seconds.items()):
        times = sorted(seconds)
        figures = [times[int(len(times) * part)] for part in (0.5, 0.99)]
        table.add_row(name, f"{len(times):,}", *(f"{1000 * one:.1f}" for one in [*figures, times[-1]]))
    show(table)
    table = Table("worker", "MB at first", "after half", "at last", "MB a minute, second half", box=box.SIMPLE_HEAD)
    for pid, samples in memory.samples.items():
        sizes = [samples[0][1], samples[len(samples) // 2][1], samples[-1][1]]
        table.add_row(str(pid), *(f"{size:.1f}" for size in sizes), f"{memory.slope(samples):+.2f}")
    show(table)
