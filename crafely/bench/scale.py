"""``crafely bench scale``: what one user's sums cost in a small and in a large table of usage, and a month's retention.

Twelve months of usage of very many users, among them two that have the very same records in both: a heavy one and an
ordinary one. What a call touches is counted by PostgreSQL itself (explain), how long it takes by the client, on one
connection, both tables in turn. Then the oldest month of the large table is dropped, as housekeeping does it.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import uvloop
from psycopg import sql as names
from psycopg.rows import TupleRow
from rich.progress import Progress

from crafely.bench import BenchError, statement
from crafely.bench.growth import median_time, touched_pages
from crafely.bench.place import Place, execute
from crafely.bench.report import Bound, Growth, Report, facts, results
from crafely.bench.rounds import Measured, Plan, Sample, Side, interleave
from crafely.bench.seed import KEYS_PER_USER, Seed, seed
from crafely.config import Settings
from crafely.db.adapters import ADAPTERS
from crafely.db.query import statements
from crafely.db.session import Database, Identity, Session, connect
from crafely.db.tls import secured
from crafely.store import usage

MONTHS = 12
# Records that a user has in a year, but for the two that are measured.
PER_USER = 10_000
# How much more the large table may cost, and how many seconds the retention of a month.
LIMIT, RETENTION = 1.5, 1.0
WARM_UP = 5


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    largest: int = 50_000_000
    smallest: int = 1_000_000
    plan: Plan = Plan()
    # Records of the heavy and of the ordinary user, the same in both tables.
    heavy: int = 50_000
    ordinary: int = 10_000


class Call(msgspec.Struct, frozen=True):
    """A statement of one user, and what it is given."""

    name: str
    user_id: str
    statement: str
    run: Callable[..., Awaitable[Sequence[Any]]]
    values: dict[str, Any]


def _calls(until: datetime) -> list[Call]:
    calls = []
    for user, user_id in ("heavy", "user_0"), ("ordinary", "user_1"):
        page = {"user_id": user_id, "take": 1000, "skip": 0}
        sums = {**page, "group_by": ["provider", "model"], "to_time": until}
        calls += [
            # Its ends are within days: what is cut off is read from usage itself.
            Call(
                f"{user} user: stats, 30 days that cut two",
                user_id,
                "usage/stats",
                usage.stats,
                {**sums, "from_time": until - timedelta(days=30, hours=5)},
            ),
            Call(
                f"{user} user: stats, a year",
                user_id,
                "usage/stats",
                usage.stats,
                {
                    **sums,
                    "from_time": _month(until, 0),
                    "to_time": datetime(until.year, until.month, until.day, tzinfo=UTC),
                },
            ),
            Call(
                f"{user} user: daily, 30 days",
                user_id,
                "usage/daily",
                usage.daily,
                {**page, "from_day": until.date() - timedelta(days=29), "to_day": until.date() + timedelta(days=1)},
            ),
        ]
    return calls


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Fills what is missing, which takes some ten minutes the first time, and measures both sizes in turn.

    Raises BenchError where the sizes are no multiples of the measured users' records, or a database has other rows.
    """
    sizes = (options.smallest, options.largest)
    if any(rows % own or rows // own < 2 for rows in sizes for own in (options.heavy, options.ordinary)):
        raise BenchError(f"expected multiples of {options.heavy}, and of {options.ordinary}, at least twice as many")
    if options.largest <= options.smallest:
        raise BenchError(f"expected more rows than the {options.smallest:,} of the small table")
    found = {}
    for rows in sizes:
        url = place.database(f"scale_{rows}")
        found[rows] = url, fill(url, settings, options, progress, rows)
    circumstances = facts(place.url, {"usage, at least": sizes[0], "usage, at most": sizes[1]})
    abouts = [(rows, url, call) for rows, (url, until) in found.items() for call in _calls(until)]
    pages = [_pages(url, call) for _, url, call in abouts]
    measured = uvloop.run(_measure(abouts, settings, options.plan, progress))
    grown = sorted(
        (
            Growth(call.name, rows, touched, median_time(one))
            for (rows, _, call), touched, one in zip(abouts, pages, measured, strict=True)
        ),
        key=lambda one: one.statement,
    )
    month, seconds = uvloop.run(_retain(found[sizes[1]][0], settings))
    bounds = [
        Bound(f"{small.statement}, {large.rows:,} rows / {small.rows:,}: time", "<=", LIMIT, ratio)
        for small, large in zip(grown[::2], grown[1::2], strict=True)
        for ratio in (large.microseconds / small.microseconds,)
    ]
    bounds.append(Bound(f"retention of a month of {sizes[1]:,} rows: seconds", "<", RETENTION, seconds))
    return Report(
        command="scale",
        facts=circumstances,
        plan=options.plan,
        sides=results(measured),
        growth=grown,
        bounds=bounds,
        notes=[
            f"The same records in both: {options.heavy:,} of the heavy user, {options.ordinary:,} of the ordinary one.",
            f"{month} was dropped in {seconds * 1000:.0f} ms.",
        ],
    )


def _month(until: datetime, number: int) -> datetime:
    """The beginning of one of the twelve months of which the last is the one of ``until``."""
    count = until.year * 12 + until.month - MONTHS + number
    return datetime(count // 12, count % 12 + 1, 1, tzinfo=UTC)


def fill(url: str, settings: Settings, options: Options, progress: Progress, rows: int) -> datetime:
    """Fills a database with twelve months of usage and its daily sums; months that are there stay. Gives their end."""
    users = max(10, rows // PER_USER)
    found = seed(url, settings, progress, keys=users * KEYS_PER_USER)
    if found.usage_records not in {0, rows}:
        raise BenchError("a database of the bench has other usage: drop it")
    if found.usage_records == rows:
        return found.usage_until
    with connect(url) as connection:
        execute(connection, "fast_seed")
        filled = {name for (name,) in execute(connection, "scale_months").fetchall()}
        task = progress.add_task(f"filling {rows:,} records of usage, months", total=MONTHS)
        for number in range(MONTHS):
            part = f"usage_y{_month(found.usage_until, number):%Y}m{_month(found.usage_until, number):%m}"
            if part not in filled:
                _fill_month(connection, found, options, rows, number, part)
            progress.advance(task)
        progress.remove_task(task)
        execute(connection, "set_usage_records", rows)
        for table in ("usage", "usage_daily"):
            connection.execute(statement("settle").replace(b"{table}", table.encode()))
        execute(connection, "checkpoint")
    return found.usage_until


def _fill_month(
    connection: psycopg.Connection[TupleRow], found: Seed, options: Options, rows: int, number: int, part: str
) -> None:
    first, end = _month(found.usage_until, number), _month(found.usage_until, number + 1)
    values = {
        "aside": names.Identifier(f"{part}_aside"),
        "part": names.Identifier(part),
        "first": names.Literal(first),
        "last": names.Literal(end),
    }

    def run(name: str, *given: object) -> None:
        psycopg.RawCursor(connection).execute(names.SQL(statement(name).decode()).format(**values), given or None)

    with connection.transaction():
        run("scale_make_room")
        run("scale_begin")
        # The rows of a month, of which there are as many in each.
        begin, last = -(-rows * number // MONTHS), -(-rows * (number + 1) // MONTHS) - 1
        users = max(10, rows // PER_USER)
        own = (options.heavy, options.ordinary)
        run("scale_usage", number, first, min(end, found.usage_until), begin, last, rows, users - 1, *own)
        run("scale_daily")
        run("scale_end")


async def _measure(
    abouts: list[tuple[int, str, Call]], settings: Settings, plan: Plan, progress: Progress
) -> list[Measured]:
    async with AsyncExitStack() as stack:
        databases: dict[str, Database] = {}
        sides: list[Side] = []
        for rows, url, call in abouts:
            if url not in databases:
                database = Database(url, size=1, pool_timeout=30, statement_timeout=settings.statement_timeout)
                await database.open()
                stack.push_async_callback(database.close)
                databases[url] = database
            session = databases[url].session("crafely_app", Identity(call.user_id))
            sides.append(Side(f"{call.name}, {rows:,} rows", _timed(session, call), call.name, "calls/s"))
        # A call's two sizes one after the other.
        half = len(sides) // 2
        order = [index for pair in zip(range(half), range(half, len(sides)), strict=True) for index in pair]
        measured = await interleave([sides[index] for index in order], plan, progress)
        return [one for _, one in sorted(zip(order, measured, strict=True), key=lambda pair: pair[0])]


def _timed(session: Session, call: Call) -> Callable[[float], Awaitable[Sample]]:
    async def measure(seconds: float) -> Sample:
        latencies = []
        begin = now = time.perf_counter()
        while now < begin + seconds:
            if not await call.run(session, **call.values):
                raise BenchError(f"{call.statement} gave a wrong answer")
            latencies.append(time.perf_counter() - now)
            now = time.perf_counter()
        return Sample(len(latencies), now - begin, latencies)

    return measure


def _pages(url: str, call: Call) -> float:
    """The pages that a call touches, once the connection knows the catalogue."""
    called = statements[call.statement]
    text = statement("explain").strip() + b"\n" + called.text
    # One plan, as where it is served.
    options = "-c role=crafely_app -c plan_cache_mode=force_generic_plan"
    pages = 0
    with psycopg.connect(secured(url), autocommit=True, options=options, context=ADAPTERS) as connection:
        execute(connection, "identify", call.user_id)
        cursor = psycopg.RawCursor(connection)
        for _ in range(WARM_UP):
            cursor.execute(text, [call.values[name] for name in called.parameters])
            (plan,) = cursor.fetchone() or (msgspec.Raw(b"[]"),)
            pages = touched_pages(msgspec.json.decode(plan)[0]["Plan"])
    return pages


async def _retain(url: str, settings: Settings) -> tuple[str, float]:
    """Drops the oldest month, as housekeeping does it. Gives the month and the seconds that it took."""
    database = Database(
        url, size=1, pool_timeout=30, statement_timeout=settings.statement_timeout, roles=("crafely_admin",)
    )
    await database.open()
    try:
        session = database.session("crafely_admin")
        month = await usage.expired_month(session, months_kept=2)
        if month is None:
            raise BenchError("no month is left to be dropped: drop the bench's database")
        begin = time.perf_counter()
        if not await usage.drop_month(session, month=month):
            raise BenchError("the month was not dropped")
        return f"{month:%Y-%m}", time.perf_counter() - begin
    finally:
        await database.close()
