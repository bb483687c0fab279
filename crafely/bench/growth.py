"""``crafely bench growth``: what a lookup and a user's sums cost when there are a thousand times as many rows.

Each size has a database of its own with as many records of usage as keys; a single user's usage stays the same. What a
call touches is counted by PostgreSQL itself (explain), how long it takes by the client, on one connection.
"""

import random
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import msgspec
import psycopg
import uvloop
from rich.progress import Progress

from crafely.bench import BenchError, statement
from crafely.bench.place import Place, execute
from crafely.bench.report import Bound, Growth, Report, facts, results
from crafely.bench.rounds import Measured, Plan, Sample, Side, interleave
from crafely.bench.seed import USAGE_PER_USER, Seed, key_id, seed
from crafely.config import Settings
from crafely.db.adapters import ADAPTERS
from crafely.db.query import statements
from crafely.db.session import Database, Identity
from crafely.store import api_keys, usage

SMALLEST = 10_000
# Calls that are explained, after some to warm up.
EXPLAINED = 200
WARM_UP = 10
# How much more the largest may cost than the smallest.
LIMIT = 1.3
LOOKUP, STATS = "lookup of a key", "usage by provider and model, 29 days"


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    largest: int = 10_000_000
    smallest: int = SMALLEST
    plan: Plan = Plan()

    @property
    def sizes(self) -> list[int]:
        """Ten times as many each time, the largest last."""
        sizes = [self.smallest]
        while sizes[-1] * 10 <= self.largest:
            sizes.append(sizes[-1] * 10)
        return sizes if sizes[-1] == self.largest else [*sizes, self.largest]


class Call(msgspec.Struct, frozen=True):
    """A statement, and what one of its calls is given, for a number drawn at random."""

    name: str
    statement: str
    role: str
    values: Callable[[Seed, int], dict[str, Any]]
    # The highest of the numbers.
    numbers: Callable[[Seed], int]


def _stats_values(found: Seed, number: int) -> dict[str, Any]:
    return {
        "user_id": f"user_{number - 1}",
        # Not at midnight: what the range cuts off its first and last day is read from usage itself.
        "from_time": found.usage_until - timedelta(days=29, hours=5),
        "to_time": found.usage_until,
        "group_by": ["provider", "model"],
        "take": 1000,
        "skip": 0,
    }


CALLS = (
    Call(LOOKUP, "api_keys/lookup", "crafely_auth", lambda _, n: {"key_ids": [key_id(n)]}, lambda found: found.keys),
    Call(STATS, "usage/stats", "crafely_app", _stats_values, lambda found: found.usage_records // USAGE_PER_USER),
)


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Seeds what is missing, which may take minutes the first time, and measures all sizes in turn."""
    if options.smallest < USAGE_PER_USER or options.largest < options.smallest:
        raise BenchError(f"the smallest table has at least {USAGE_PER_USER} rows, and the largest no fewer")
    seeds: dict[int, tuple[str, Seed]] = {}
    for rows in options.sizes:
        url = place.database(str(rows))
        found = seed(url, settings, progress, keys=rows, usage_records=rows)
        seeds[rows] = url, found
    circumstances = facts(place.url, {"api_keys and usage, at most": options.largest})
    pages = [_pages(url, call, found) for url, found in seeds.values() for call in CALLS]
    measured = uvloop.run(_measure(seeds, settings, options.plan, progress))
    about = [(call.name, rows) for rows in seeds for call in CALLS]
    grown = [
        Growth(name, rows, touched, median_time(one))
        for (name, rows), touched, one in zip(about, pages, measured, strict=True)
    ]
    return Report(
        command="growth",
        facts=circumstances,
        plan=options.plan,
        sides=results(measured),
        growth=sorted(grown, key=lambda one: one.statement),
        bounds=_bounds([one for one in grown if one.statement == LOOKUP]),
        notes=[f"As many keys as records of usage, {USAGE_PER_USER:,} records to a user, whatever the size."],
    )


async def _measure(
    seeds: dict[int, tuple[str, Seed]], settings: Settings, plan: Plan, progress: Progress
) -> list[Measured]:
    async with AsyncExitStack() as stack:
        sides = []
        for rows, (url, found) in seeds.items():
            database = Database(url, size=2, pool_timeout=30, statement_timeout=settings.statement_timeout)
            await database.open()
            stack.push_async_callback(database.close)
            sides += [await _side(stack, database, call, found, rows) for call in CALLS]
        return await interleave(sides, plan, progress)


def _bounds(lookups: list[Growth]) -> list[Bound]:
    smallest, largest = lookups[0], lookups[-1]
    words = f"{LOOKUP}, {largest.rows:,} rows / {smallest.rows:,}"
    return [
        Bound(f"{words}: pages touched", "<=", LIMIT, largest.buffers / smallest.buffers),
        Bound(f"{words}: time", "<=", LIMIT, largest.microseconds / smallest.microseconds),
    ]


def median_time(one: Measured) -> float:
    """Of the rounds' medians, in microseconds: what a disturbed round shows does not count."""
    return statistics.median(statistics.median(sample.latencies) for sample in one.samples if sample.latencies) * 1e6


async def _side(stack: AsyncExitStack, database: Database, call: Call, found: Seed, rows: int) -> Side:
    chance = random.Random(rows)  # noqa: S311 - a sample, no secret; the same in every run
    channel = database.channel("crafely_auth")
    await channel.open()
    stack.push_async_callback(channel.close)

    async def lookup(number: int) -> bool:
        values = call.values(found, number)
        rows = await api_keys.lookup(channel, **values)
        return [row.key_id for row in rows] == list(values["key_ids"])

    async def stats(number: int) -> bool:
        values = call.values(found, number)
        session = database.session("crafely_app", Identity(values["user_id"]))
        return sum(row.records for row in await usage.stats(session, **values)) > 0

    run: Callable[[int], Awaitable[bool]] = lookup if call.name == LOOKUP else stats

    async def measure(seconds: float) -> Sample:
        latencies = []
        begin = now = time.perf_counter()
        while now < begin + seconds:
            right = await run(chance.randint(1, call.numbers(found)))
            if not right:
                raise BenchError(f"{call.statement} gave a wrong answer")
            latencies.append(time.perf_counter() - now)
            now = time.perf_counter()
        return Sample(len(latencies), now - begin, latencies)

    return Side(f"{call.name}, {rows:,} rows", measure, call.name, "calls/s")


def _pages(url: str, call: Call, found: Seed) -> float:
    """The mean of the pages that a call touches, whether they were in memory or not."""
    chance = random.Random(found.keys)  # noqa: S311 - a sample, no secret; the same in every run
    called = statements[call.statement]
    text = statement("explain").strip() + b"\n" + called.text
    touched = []
    with psycopg.connect(url, autocommit=True, options=f"-c role={call.role}", context=ADAPTERS) as connection:
        cursor = psycopg.RawCursor(connection)
        # The first ones also fill the connection's caches of the catalogue.
        for _ in range(EXPLAINED + WARM_UP):
            values = call.values(found, chance.randint(1, call.numbers(found)))
            execute(connection, "identify", values.get("user_id", ""))
            cursor.execute(text, [values[name] for name in called.parameters])
            (plan,) = cursor.fetchone() or (msgspec.Raw(b"[]"),)
            touched.append(touched_pages(msgspec.json.decode(plan)[0]["Plan"]))
    return statistics.mean(touched[WARM_UP:])


def touched_pages(plan: dict[str, Any]) -> int:
    """The pages that a plan, as explain gives it, has touched, found in memory or not."""
    return sum(int(plan[f"{kind} Blocks"]) for kind in ("Shared Hit", "Shared Read"))
