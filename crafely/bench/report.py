"""What a bench found: Structs, which are also its JSON, and tables for people."""

import math
import operator
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec
from rich import box
from rich.table import Table

from crafely import __version__
from crafely.bench import capacity_page
from crafely.bench.capacity_terms import Capacity
from crafely.bench.place import execute
from crafely.bench.rounds import Measured, Plan
from crafely.db.session import connect

# Where the curves of latencies are drawn through, in percent.
CURVE = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100)
LIBRARIES = ("aiohttp", "argon2-cffi", "asyncpg", "msgspec", "psycopg", "psycopg-binary", "psycopg-pool", "uvloop")


class Facts(msgspec.Struct, frozen=True, rename="camel"):
    """Under what circumstances the figures were taken."""

    date: datetime
    crafely: str
    # The commit of a checkout, and whether its files differ from it; None where there is no checkout.
    commit: str | None
    dirty: bool | None
    python: str
    libraries: dict[str, str]
    system: str
    cpus: int
    # The load of the machine over the last minute, before the bench began: others' work makes figures worth less.
    load: float
    # Settings of the database server, its version first; empty where only an address was given.
    server: dict[str, str]
    # How many rows there were to find: "api_keys": 1000000.
    rows: dict[str, int]


class Latency(msgspec.Struct, frozen=True):
    """Percentiles, in milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Round(msgspec.Struct, frozen=True):
    """One measurement of one side."""

    # What was done, in how many seconds, and how many that makes in a second.
    count: int
    seconds: float
    rate: float
    latency: Latency | None


class SideResult(msgspec.Struct, frozen=True):
    """What a side gave."""

    name: str
    group: str
    # Of the rates; empty where only times mean something.
    unit: str
    family: str
    # Of the rates of its rounds.
    median: float
    lowest: float
    highest: float
    rounds: list[Round]
    # All rounds together; the curve is pairs of percent and milliseconds.
    latency: Latency | None
    curve: list[tuple[float, float]]


class Ratio(msgspec.Struct, frozen=True):
    """How one side compares with another: rate by rate in the same round, and the median of those."""

    name: str
    side: str
    to: str
    median: float
    rounds: list[float]


class Bound(msgspec.Struct, frozen=True):
    """What was promised, and what was seen."""

    name: str
    relation: Literal[">=", "<=", "<"]
    wanted: float
    seen: float

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        compare = {">=": operator.ge, "<=": operator.le, "<": operator.lt}[self.relation]
        return bool(compare(self.seen, self.wanted))


class Growth(msgspec.Struct, frozen=True, rename="camel"):
    """What a statement costs with so many rows in its table."""

    statement: str
    rows: int
    # Pages touched for one call, found in memory or not: the mean over many.
    buffers: float
    # Median, in microseconds, of one call after the other on one connection.
    microseconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one bench."""

    command: str
    facts: Facts
    # None where sides were not measured in rounds.
    plan: Plan | None = None
    sides: list[SideResult] = []
    ratios: list[Ratio] = []
    bounds: list[Bound] = []
    growth: list[Growth] = []
    capacity: Capacity | None = None
    # What a reader must know to read the figures rightly.
    notes: list[str] = []

    def side(self, name: str) -> SideResult:
        """A side by its name."""
        return next(side for side in self.sides if side.name == name)

    def ratio(self, name: str, side: str, to: str) -> Ratio:
        """Compares two of its sides, round by round."""
        pairs = zip(self.side(side).rounds, self.side(to).rounds, strict=True)
        rounds = [one.rate / other.rate if other.rate else math.inf for one, other in pairs]
        return Ratio(name, side, to, statistics.median(rounds), rounds)


def facts(url: str | None, rows: Mapping[str, int]) -> Facts:
    """The circumstances here and now, with the settings of the server at a libpq URL."""
    server: dict[str, str] = {}
    if url is not None:
        with connect(url) as connection:
            server = dict(execute(connection, "settings").fetchall())
        server = {"server_version": server.pop("server_version"), **server}
    commit, dirty = _commit()
    return Facts(
        date=datetime.now(UTC),
        crafely=__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        libraries={name: found for name in LIBRARIES if (found := _version(name))},
        system=platform.platform(),
        cpus=os.cpu_count() or 1,
        load=os.getloadavg()[0],
        server=server,
        rows=dict(rows),
    )


def results(measured: Sequence[Measured]) -> list[SideResult]:
    """What the sides gave, summed up."""
    return [_result(one) for one in measured]


def _result(one: Measured) -> SideResult:
    rounds = [Round(s.count, s.seconds, s.rate, _latency(sorted(s.latencies))) for s in one.samples]
    rates = [sample.rate for sample in one.samples]
    together = sorted(latency for sample in one.samples for latency in sample.latencies)
    return SideResult(
        name=one.side.name,
        group=one.side.group,
        unit=one.side.unit,
        family=one.side.family or one.side.name,
        median=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        rounds=rounds,
        latency=_latency(together),
        curve=[(percent, percentile(together, percent)) for percent in CURVE] if together else [],
    )


def _latency(ordered: Sequence[float]) -> Latency | None:
    if not ordered:
        return None
    return Latency(*(percentile(ordered, percent) for percent in (50, 90, 99, 99.9, 100)))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of seconds in ascending order: the smallest that so many percent do not exceed, in milliseconds."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] * 1000


def tables(report: Report) -> list[Table]:
    """The report for a terminal."""
    made = [_sides(report)] if report.sides else []
    if report.capacity is not None:
        made += [_section(section) for section in capacity_page.sections(report.capacity)]
    if report.growth:
        made.append(_growth(report))
    if report.ratios:
        made.append(_ratios(report))
    return made


def _section(section: capacity_page.Section) -> Table:
    table = Table(*section.head, title=section.title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in section.rows:
        table.add_row(*row)
    _right(table, *section.numbers)
    return table


def _sides(report: Report) -> Table:
    table = Table("", "median", "lowest – highest", "", "p50 ms", "p99 ms", "max ms", box=box.SIMPLE_HEAD)
    for side in report.sides:
        rates = [f"{side.median:,.0f}", f"{side.lowest:,.0f} – {side.highest:,.0f}"] if side.unit else ["", ""]
        latency = side.latency
        times = [f"{x:.2f}" for x in (latency.p50, latency.p99, latency.max)] if latency else ["", "", ""]
        table.add_row(side.name, *rates, side.unit, *times)
    _right(table, 1, 2, 4, 5, 6)
    return table


def _growth(report: Report) -> Table:
    table = Table("statement", "rows", "pages touched", "µs", box=box.SIMPLE_HEAD)
    for one in report.growth:
        table.add_row(one.statement, f"{one.rows:,}", f"{one.buffers:.2f}", f"{one.microseconds:.0f}")
    _right(table, 1, 2, 3)
    return table


def _ratios(report: Report) -> Table:
    table = Table("", "ratio", "round by round", box=box.SIMPLE_HEAD)
    for ratio in report.ratios:
        table.add_row(ratio.name, f"{ratio.median:.2f}", " ".join(f"{one:.2f}" for one in ratio.rounds))
    _right(table, 1)
    return table


def bounds_table(report: Report) -> Table:
    """Each promise, and whether it is kept."""
    table = Table("promise", "wanted", "seen", "", box=box.SIMPLE_HEAD)
    for bound in report.bounds:
        verdict = "[green]holds[/]" if bound.holds else "[red]does not hold[/]"
        table.add_row(bound.name, f"{bound.relation} {bound.wanted:g}", f"{bound.seen:.4g}", verdict)
    _right(table, 1, 2)
    return table


def _right(table: Table, *columns: int) -> None:
    for column in columns:
        table.columns[column].justify = "right"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    root = Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None, None

    def ask(*arguments: str) -> str | None:
        done = subprocess.run([git, "-C", str(root), *arguments], check=False, capture_output=True, text=True)
        return None if done.returncode else done.stdout.strip()

    changed = ask("status", "--porcelain")
    return ask("rev-parse", "HEAD"), None if changed is None else bool(changed)
