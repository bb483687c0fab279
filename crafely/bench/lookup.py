"""``crafely bench lookup``: how many keys a second the data layer finds, next to pgbench and to asking one by one.

Callers are coroutines of one process, each of which awaits one key after the other. Every answer is held against its
key: a wrong one ends the bench.
"""

import asyncio
import importlib.util
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from psycopg.conninfo import conninfo_to_dict
from rich.progress import Progress

from crafely.auth.lookups import lookups
from crafely.bench import BenchError, pgbench
from crafely.bench.place import Place
from crafely.bench.report import Bound, Ratio, Report, SideResult, facts, results
from crafely.bench.rounds import Measured, Plan, Sample, Side, interleave
from crafely.bench.seed import key_id, seed
from crafely.config import Settings
from crafely.db.query import statements
from crafely.db.session import Database
from crafely.store import api_keys
from crafely.store.api_keys import KeyRecord

# The row of a key_id.
Ask = Callable[[str], Awaitable[KeyRecord | None]]

CALLERS = (1, 8, 32, 64, 256)
# Callers that ask one by one, on eight connections, at most.
FEW_CALLERS = (1, 8, 64)
CLIENTS = (1, 2, 4, 8, 16)
CONNECTIONS = 8
QUEUE = 1000
# How unequal keys are: the first is asked for 2^1.07 times as often as the second.
ZIPF = 1.07
# Keys drawn beforehand, so that drawing costs a caller nothing.
DRAWN = 500_000
# Of ten answers one is timed, as in pgbench's log.
TIMED = 10

NOTES = [
    "coalesced: callers of one process, answered in batches.",
    f"pool: the same callers, one statement for each key, on {CONNECTIONS} connections.",
    "pgbench: the same statement for one key, prepared, in C.",
]


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    rows: int = 1_000_000
    plan: Plan = Plan()
    distributions: Sequence[str] = ("uniform", "zipf")


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Seeds what is missing, measures, and compares."""
    url = place.database(str(options.rows))
    seed(url, settings, progress, keys=options.rows)
    found = facts(url, {"api_keys": options.rows})
    measured = uvloop.run(_measure(url, place.pgbench, settings, options, progress))
    report = Report(command="lookup", facts=found, plan=options.plan, sides=results(measured), notes=NOTES)
    ratios = [ratio for distribution in options.distributions for ratio in compare(report, distribution)]
    return msgspec.structs.replace(report, ratios=ratios, bounds=[_bound(ratio) for ratio in ratios])


async def _measure(
    url: str, program: Path | None, settings: Settings, options: Options, progress: Progress
) -> list[Measured]:
    sides: list[Side] = []
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(_database(url, settings))
        coalesced = await stack.enter_async_context(_coalesced(database))
        driver = None
        if importlib.util.find_spec("asyncpg"):
            driver = await stack.enter_async_context(_asyncpg(url))
        for distribution in options.distributions:
            keys = draw(options.rows, distribution)
            sides += [_callers("coalesced", distribution, coalesced, keys, n) for n in CALLERS]
            if program is not None:
                sides += [_clients(program, url, distribution, options.rows, n) for n in CLIENTS]
            sides += [_callers("pool", distribution, _pooled(database), keys, n) for n in FEW_CALLERS]
            if driver is not None:
                sides += [_callers("asyncpg", distribution, driver, keys, n) for n in FEW_CALLERS]
        return await interleave(sides, options.plan, progress)


# Of 256, 64 and 8 callers, against pgbench's best over its client counts; of one caller, against pgbench with one.
WANTED = {256: 2.5, 64: 2.0, 8: 0.6, 1: 0.5}


def compare(report: Report, distribution: str) -> list[Ratio]:
    """The ratios that are promised, where pgbench was there to compare with."""
    rivals: list[SideResult] = [s for s in report.sides if s.name.startswith(f"pgbench, {distribution}")]
    if not rivals:
        return []
    best = max(rivals, key=lambda side: side.median)
    one = next(side for side in rivals if side.name.endswith(_plural(1, "client")))
    ratios = []
    for callers in WANTED:
        rival, words = (one, "pgbench with one client") if callers == 1 else (best, "pgbench at its best")
        mine = f"coalesced, {distribution}, {_plural(callers, 'caller')}"
        ratios.append(report.ratio(f"{distribution}: {_plural(callers, 'caller')} / {words}", mine, rival.name))
    return ratios


def _bound(ratio: Ratio) -> Bound:
    callers = int(ratio.side.split()[-2])
    return Bound(ratio.name, ">=", WANTED[callers], ratio.median)


def draw(rows: int, distribution: str) -> list[str]:
    """Keys to ask for: uniform, or Zipf with the popular ones scattered over the table as pgbench's script does it."""
    chance = random.Random(rows)  # noqa: S311 - a sample, no secret; the same in every run
    if distribution == "uniform":
        return [key_id(1 + chance.randrange(rows)) for _ in range(DRAWN)]
    total, weights = 0.0, []
    for rank in range(1, rows + 1):
        total += rank**-ZIPF
        weights.append(total)
    ranks = chance.choices(range(1, rows + 1), cum_weights=weights, k=DRAWN)
    return [key_id(1 + rank * pgbench.SCATTER % rows) for rank in ranks]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _callers(kind: str, distribution: str, ask: Ask, keys: Sequence[str], count: int) -> Side:
    async def measure(seconds: float) -> Sample:
        return await callers(ask, keys, count, seconds)

    return Side(
        f"{kind}, {distribution}, {_plural(count, 'caller')}", measure, f"{distribution} keys", "lookups/s", kind
    )


def _clients(program: Path, url: str, distribution: str, rows: int, count: int) -> Side:
    text = pgbench.script(rows, None if distribution == "uniform" else ZIPF)

    async def measure(seconds: float) -> Sample:
        return await pgbench.measure(program, url, text, count, seconds)

    return Side(
        f"pgbench, {distribution}, {_plural(count, 'client')}", measure, f"{distribution} keys", "lookups/s", "pgbench"
    )


async def callers(ask: Ask, keys: Sequence[str], count: int, seconds: float) -> Sample:
    """So many callers, each awaiting one key after the other. Raises BenchError for an answer that is not its key's."""
    latencies: list[float] = []
    begin = time.perf_counter()
    end = begin + seconds

    async def call(position: int) -> int:
        done = 0
        while True:
            key = keys[position % len(keys)]
            position += 1
            if done % TIMED:
                found = await ask(key)
            else:
                asked = time.perf_counter()
                if done and asked >= end:
                    return done
                found = await ask(key)
                latencies.append(time.perf_counter() - asked)
            if found is None or found.key_id != key:
                raise BenchError(f"asked for key {key}, and was given {found and found.key_id}")
            done += 1

    # Each begins somewhere else, and elsewhere in the next round: no round finds its pages kept by the one before.
    start = random.randrange(len(keys))  # noqa: S311 - a place to begin, no secret
    tasks = [asyncio.create_task(call(start + number * len(keys) // count)) for number in range(count)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        total = sum(task.result() for task in done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return Sample(total, time.perf_counter() - begin, latencies)


@asynccontextmanager
async def _database(url: str, settings: Settings) -> AsyncIterator[Database]:
    # The pool of this role has a quarter of the size.
    size, seconds = 4 * CONNECTIONS, settings.statement_timeout
    database = Database(url, size=size, pool_timeout=30, statement_timeout=seconds, roles=("crafely_auth",))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _coalesced(database: Database) -> AsyncIterator[Ask]:
    """What the API asks."""
    coalescer = lookups(database, queue=QUEUE)
    await coalescer.open()
    try:
        yield coalescer.ask
    finally:
        await coalescer.close()


def _pooled(database: Database) -> Ask:
    """A statement for each key, on connections of a pool."""
    session = database.session("crafely_auth")

    async def ask(key: str) -> KeyRecord | None:
        found = await api_keys.lookup(session, key_ids=[key])
        return found[0] if found else None

    return ask


@asynccontextmanager
async def _asyncpg(url: str) -> AsyncIterator[Ask]:
    """The same with another driver, for comparison; it is no dependency."""
    import asyncpg  # noqa: PLC0415 - only where somebody has installed it

    text = statements["api_keys/lookup"].text.decode()
    parts: dict[str, Any] = conninfo_to_dict(url)
    where = {{"dbname": "database", "sslmode": "ssl"}.get(name, name): value for name, value in parts.items()}
    options = {"role": "crafely_auth", "jit": "off"}
    size = CONNECTIONS
    async with asyncpg.create_pool(**where, min_size=size, max_size=size, server_settings=options) as pool:

        async def ask(key: str) -> KeyRecord | None:
            found = await pool.fetch(text, [key])
            return KeyRecord(*found[0].values()) if found else None

        yield ask
