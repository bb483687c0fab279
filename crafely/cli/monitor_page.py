"""The desk as a page for people: tables, and the lines of what needs somebody."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from crafely.api.monitor_alerts import Alert, size_text, time_text
from crafely.api.monitor_desk import Desk

# Rows of a table on a terminal; with --once there are more of them.
SHORT, LONG = 10, 50
_COLOURS = {"warning": "yellow", "critical": "bold red"}


def page(desk: Desk, alerts: Sequence[Alert]) -> RenderableType:
    """Everything, one table below the other."""
    return Group(*_parts(desk, alerts, LONG))


def screen(desk: Desk | None, alerts: Sequence[Alert], note: str) -> RenderableType:
    """The same for a terminal, the most urgent first: what has no room is cut off at the end."""
    line = Text(f"crafely monitor · {note}", style="dim", no_wrap=True, overflow="ellipsis")
    if desk is None:
        return line
    return Group(line, *_parts(desk, alerts, SHORT))


def _parts(desk: Desk, alerts: Sequence[Alert], rows: int) -> Iterable[RenderableType]:
    yield _head(desk)
    yield _alerts(alerts)
    yield _queries(desk, rows)
    if desk.activity.locks:
        yield _locks(desk, rows)
    if desk.activity.transactions:
        yield _transactions(desk, rows)
    yield _connections(desk, rows)
    yield _tables(desk, rows)
    yield _indexes(desk, rows)
    if desk.activity.replicas:
        yield _replicas(desk, rows)


def _head(desk: Desk) -> RenderableType:
    one, storage = desk.overview, desk.storage
    full = f", full in {storage.days_to_full:.0f} days" if storage.days_to_full is not None else ""
    grows = f", {_signed(storage.bytes_per_day)} a day{full}" if storage.bytes_per_day is not None else ""
    limit = f" of {size_text(storage.limit_bytes)}" if storage.limit_bytes is not None else ""
    hits = f"{_share(one.table_hit_rate)} of tables and {_share(one.index_hit_rate)} of indexes in memory"
    return Text.from_markup(
        f"[bold]{escape(one.database)}[/] on PostgreSQL {escape(one.server_version)} · {size_text(one.bytes)}{limit}"
        f"{grows} · {one.connections} of {one.max_connections} connections · {hits}"
    )


def _alerts(alerts: Sequence[Alert]) -> RenderableType:
    if not alerts:
        return Text("nothing needs you", style="green")
    lines = [Text(f"● {alert}", style=_COLOURS[alert.severity]) for alert in alerts]
    return Group(*lines)


def _queries(desk: Desk, rows: int) -> RenderableType:
    found = desk.queries
    since = f"since {_when(found.since)}" if found.since is not None else f"not counted: {found.problem}"
    table = _table(f"statements, {since}", "file", "share", "calls", "mean ms", "max ms", "rows", "hit", "read")
    for one in found.data[:rows]:
        measures = (one.rows_per_call, one.hit_per_call, one.read_per_call)
        per_call = [_number(value) for value in measures]
        mean = f"{one.mean_ms or 0:.2f}"
        table.add_row(one.statement, f"{one.share:.1%}", str(one.calls), mean, f"{one.max_ms:.1f}", *per_call)
    return table


def _locks(desk: Desk, rows: int) -> RenderableType:
    table = _table("locks", "waits", "for", "on", "s", "in the way", "is")
    for one in desk.activity.locks[:rows]:
        table.add_row(
            f"{one.pid} {escape(one.statement or one.application)}",
            one.lock_mode or "–",
            escape(one.object or "–"),
            _number(one.seconds),
            f"{one.blocking_pid} {escape(one.blocking_statement or one.blocking_application or '')}",
            one.blocking_state or "–",
        )
    return table


def _transactions(desk: Desk, rows: int) -> RenderableType:
    table = _table("open transactions", "pid", "application", "role", "open", "state", "file", "waits for")
    for one in desk.activity.transactions[:rows]:
        table.add_row(
            str(one.pid),
            escape(one.application),
            one.role or "–",
            time_text(one.seconds),
            one.state,
            one.statement or "–",
            one.waits_for or "–",
        )
    return table


def _connections(desk: Desk, rows: int) -> RenderableType:
    table = _table("connections", "number", "database", "role", "application", "state", "longest")
    for one in desk.pool.data[:rows]:
        longest = time_text(one.longest_seconds) if one.longest_seconds is not None else "–"
        names = [escape(name or "–") for name in (one.database, one.role, one.application)]
        table.add_row(str(one.connections), *names, one.state, longest)
    return table


def _tables(desk: Desk, rows: int) -> RenderableType:
    table = _table("tables", "table", "partitions", "size", "indexes", "rows", "dead", "a day", "vacuumed")
    whole = [one for one in desk.storage.data if one.parent is None]
    whole.sort(key=lambda one: -(one.bytes or 0) - (one.index_bytes or 0))
    for one in whole[:rows]:
        table.add_row(
            escape(one.name),
            str(one.partitions or ""),
            _or_dash(size_text, one.bytes),
            _or_dash(size_text, one.index_bytes),
            _or_dash(str, one.row_count),
            str(one.dead_rows),
            _or_dash(_signed, one.bytes_per_day),
            _when(one.vacuumed_at),
        )
    return table


def _indexes(desk: Desk, rows: int) -> RenderableType:
    table = _table("largest indexes", "index", "table", "size", "uses", "bloat", "kept for")
    for one in sorted(desk.indexes.data, key=lambda one: -one.bytes)[:rows]:
        names = (escape(one.name), escape(one.table))
        bloat = _or_dash(size_text, one.bloat_bytes)
        table.add_row(*names, size_text(one.bytes), str(one.scans), bloat, one.kept_for or "")
    return table


def _replicas(desk: Desk, rows: int) -> RenderableType:
    table = _table("replicas and slots", "name", "state", "synchronous", "behind", "s", "kept")
    for one in desk.activity.replicas[:rows]:
        synchronous = {True: "yes", False: "no", None: "–"}[one.synchronous]
        behind, kept = _or_dash(size_text, one.lag_bytes), _or_dash(size_text, one.kept_bytes)
        table.add_row(escape(one.name), one.state, synchronous, behind, _number(one.lag_seconds), kept)
    return table


_RIGHT = {"share", "calls", "mean ms", "max ms", "rows", "hit", "read", "s", "open", "number", "longest", "partitions"}
_RIGHT |= {"size", "indexes", "dead", "a day", "uses", "bloat", "behind", "kept"}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        # What is too long goes on in the next line: a name that is cut is none.
        table.add_column(column, justify="right" if column in _RIGHT else "left", overflow="fold")
    return table


def _or_dash(text: Callable[[int], str], value: int | None) -> str:
    return "–" if value is None else text(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _signed(count: int | None) -> str:
    return f"{'-' if (count or 0) < 0 else '+'}{size_text(abs(count or 0))}"


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment is not None else "–"
