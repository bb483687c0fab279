"""What the catalogue holds, and its tables as rows of text: the same for every format."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from crafely.cli.callers import Place
from crafely.cli.entries import Entry
from crafely.store.monitor import QueryStats

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


class Planned(msgspec.Struct, frozen=True, rename="camel"):
    """The generic plan of a statement in a database, or why there is none."""

    lines: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()
    refused: str | None = None


class Live(msgspec.Struct, frozen=True, rename="camel"):
    """What a database adds: its version, plans by statement, indexes by name, figures by statement and since when."""

    server: str
    database: str
    plans: dict[str, Planned]
    indexes: dict[str, str]
    figures: dict[str, QueryStats]
    since: datetime | None = None


class Catalog(msgspec.Struct, frozen=True, rename="camel"):
    """All of it."""

    version: str
    statements: list[Entry]
    live: Live | None = None


def callers_of(one: Entry) -> list[str]:
    """What makes a statement run, a word each."""
    return [f"housekeeping: {caller.name}" if caller.kind == "job" else caller.name for caller in one.callers]


def overview_rows(catalog: Catalog) -> Table:
    """One line for each statement: who runs it, what comes, who calls; with a database, what it has cost."""
    head = ["statement", "role", "returns", "called by"]
    figures = catalog.live.figures if catalog.live is not None else {}
    if figures:
        head += ["calls", "mean ms", "share"]
    rows = []
    for one in catalog.statements:
        row = [one.name, ", ".join(_short(role) for role in one.roles), one.returns, "; ".join(callers_of(one))]
        if figures:
            stats = figures.get(one.name)
            row += [f"{stats.calls:,}", _number(stats.mean_ms), f"{stats.share:.1%}"] if stats else ["0", "", ""]
        rows.append(row)
    return head, rows


def _short(role: str) -> str:
    return role.removeprefix("crafely_")


def route_rows(catalog: Catalog) -> list[list[str]]:
    """Each route, in the order of the table, with the statements that it runs; then commands and housekeeping."""
    found: dict[tuple[int, Place, str], list[str]] = {}
    order = ("route", "request", "job", "command")
    for one in catalog.statements:
        for caller, name in zip(one.callers, callers_of(one), strict=True):
            found.setdefault((order.index(caller.kind), caller.place, name), []).append(one.name)
    return [[name, ", ".join(statements)] for (_, _, name), statements in sorted(found.items())]


def index_rows(catalog: Catalog) -> Table:
    """Each index that a header names, or that a plan uses: for whom it is there."""
    found: dict[str, list[str]] = {}
    for one in catalog.statements:
        planned = catalog.live.plans[one.name].indexes if catalog.live is not None else ()
        for index in dict.fromkeys([*one.uses, *planned]):
            found.setdefault(index, []).append(one.name if index in one.uses else f"{one.name} (by plan)")
    rows = [[index, ", ".join(statements)] for index, statements in sorted(found.items())]
    if catalog.live is None:
        return ["index", "used by"], rows
    made = catalog.live.indexes
    return ["index", "used by", "definition"], [[*row, made.get(row[0], "").partition(" ON ")[2]] for row in rows]


def figures_row(stats: QueryStats) -> Table:
    """What a statement has cost."""
    return (
        ["calls", "mean ms", "most ms", "total s", "share", "rows a call", "buffers hit", "read"],
        [
            [
                f"{stats.calls:,}",
                _number(stats.mean_ms),
                _number(stats.max_ms),
                _number(stats.total_ms / 1000),
                f"{stats.share:.1%}",
                _number(stats.rows_per_call),
                _number(stats.hit_per_call),
                _number(stats.read_per_call),
            ]
        ],
    )


def _number(value: float | None) -> str:
    """With three digits where there are as many, and no exponent."""
    if value is None:
        return "–"
    places = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{places}f}"
