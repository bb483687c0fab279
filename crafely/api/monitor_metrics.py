"""The desk's numbers for Prometheus: taken by one worker every half minute, shown by whichever is scraped.

They are one text that is replaced as a whole, and no gauges of prometheus-client: those of several workers could not
forget an index that has been dropped, nor what a worker once showed that is not the one to show it any more.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from crafely.api.monitor_alerts import alerts
from crafely.api.monitor_desk import Desk

# Seconds after which numbers are too old to be shown: three times what is between two of them.
MAX_AGE = 90.0

Rows = Iterable[tuple[tuple[str, ...], float | None]]


class Metrics:
    """The numbers of one process, or of all workers that share PROMETHEUS_MULTIPROC_DIR."""

    def __init__(self) -> None:
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._folder = Path(folder) if folder else None
        self._turn: IO[bytes] | None = None
        self._text, self._at = b"", 0.0

    def turn(self) -> bool:
        """Whether this process is the one that takes them: it stays so to its end, when the kernel frees the lock."""
        if self._folder is None or self._turn is not None:
            return True
        file = (self._folder / "monitor.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._turn = file
        return True

    def keep(self, desk: Desk) -> None:
        """Shows a desk from now on, in place of what was shown before."""
        text = render(desk)
        if self._folder is None:
            self._text, self._at = text, time.time()
            return
        # A scrape in the same moment sees the old text or the new one.
        new = self._folder / "monitor.new"
        new.write_bytes(text)
        new.replace(self._folder / "monitor.prom")

    def text(self) -> bytes:
        """What to show, in Prometheus's text format; nothing where it is too old or was never taken."""
        text, at = self._text, self._at
        if self._folder is not None:
            try:
                with (self._folder / "monitor.prom").open("rb") as file:
                    text, at = file.read(), os.fstat(file.fileno()).st_mtime
            except FileNotFoundError:
                return b""
        return text if time.time() - at < MAX_AGE else b""

    def close(self) -> None:
        """Leaves the turn to another."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None


class _Shown:
    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(desk: Desk) -> bytes:
    """A desk in Prometheus's text format."""
    registry = CollectorRegistry()
    shown: Any = _Shown(_families(desk))
    registry.register(shown)
    return generate_latest(registry)


def _families(desk: Desk) -> Iterator[Metric]:
    yield from _statements(desk)
    yield from _sizes(desk)
    yield from _indexes(desk)
    one, activity = desk.overview, desk.activity
    states: dict[str, int] = {}
    for kind in desk.pool.data:
        states[kind.state] = states.get(kind.state, 0) + kind.connections
    yield _gauge("connections", "The server's connections, by state.", ("state",), _each(states))
    yield _gauge("max_connections", "Connections that the server takes.", (), [((), one.max_connections)])
    rates = {"table": one.table_hit_rate, "index": one.index_hit_rate}
    yield _gauge("hit_rate", "Share of the blocks asked for that were in memory.", ("kind",), _each(rates))
    yield _gauge(
        "transaction_age", "Transactions since the oldest that is not frozen.", (), [((), one.transaction_age)]
    )
    longest = max((transaction.seconds for transaction in activity.transactions), default=0.0)
    yield _gauge("longest_transaction_seconds", "Age of the oldest open transaction.", (), [((), longest)])
    waiting = len({lock.pid for lock in activity.locks})
    yield _gauge("blocked_sessions", "Sessions that wait for a lock.", (), [((), waiting)])
    lag = [((replica.name,), replica.lag_bytes) for replica in activity.replicas]
    yield _gauge("replication_lag_bytes", "Log that a replica has not applied.", ("replica",), lag)
    kept = [((replica.name,), replica.kept_bytes) for replica in activity.replicas]
    yield _gauge("replication_kept_bytes", "Log that is kept for a slot.", ("replica",), kept)
    if desk.backup is not None:
        made = desk.backup.started_at
        age = (datetime.now(UTC) - made).total_seconds() if made is not None else None
        yield _gauge("backup_age_seconds", "Age of the newest complete backup.", (), [((), age)])
        yield _gauge("backup_bytes", "Size of the newest complete backup.", (), [((), desk.backup.bytes)])
    codes: dict[str, int] = {}
    for alert in alerts(desk):
        codes[alert.code] = codes.get(alert.code, 0) + 1
    yield _gauge("alerts", "What needs somebody, by kind; crafely monitor says more.", ("code",), _each(codes))


def _statements(desk: Desk) -> Iterator[Metric]:
    counting = float(desk.queries.problem is None)
    yield _gauge("statements_counted", "1 where pg_stat_statements counts.", (), [((), counting)])
    files = desk.queries.data
    label = ("statement",)
    yield _counter("statement_calls", "Calls of an SQL file.", label, (((f.statement,), f.calls) for f in files))
    yield _counter(
        "statement_seconds",
        "The server's time for an SQL file.",
        label,
        (((f.statement,), f.total_ms / 1000) for f in files),
    )
    yield _counter(
        "statement_rows",
        "Rows that an SQL file gave or touched.",
        label,
        (((f.statement,), round((f.rows_per_call or 0) * f.calls)) for f in files),
    )
    blocks = [
        ((f.statement, found), round((per_call or 0) * f.calls))
        for f in files
        for found, per_call in (("hit", f.hit_per_call), ("read", f.read_per_call), ("spilled", f.spilled_per_call))
    ]
    yield _counter("statement_blocks", "Blocks that an SQL file took, by where from.", ("statement", "found"), blocks)


def _sizes(desk: Desk) -> Iterator[Metric]:
    one = desk.storage
    yield _gauge("bytes", "Size of the database.", (), [((), one.bytes)])
    yield _gauge("limit_bytes", "What the database may grow to.", (), [((), one.limit_bytes)])
    yield _gauge("growth_bytes", "Growth of the database in a day.", (), [((), one.bytes_per_day)])
    yield _gauge("days_to_full", "Days until the limit, by the trend.", (), [((), one.days_to_full)])
    # Partitions come and go with the months: their tables have them all.
    tables = [table for table in one.data if table.parent is None]
    measures: list[tuple[str, str, Callable[[Any], float | None]]] = [
        ("table_bytes", "Size of a table without its indexes.", lambda table: table.bytes),
        ("table_index_bytes", "Size of a table's indexes.", lambda table: table.index_bytes),
        ("table_rows", "Rows of a table, estimated.", lambda table: table.row_count),
        ("table_dead_rows", "Dead rows of a table, estimated.", lambda table: table.dead_rows),
        ("table_growth_bytes", "Growth of a table in a day.", lambda table: table.bytes_per_day),
    ]
    for name, help_, measure in measures:
        yield _gauge(name, help_, ("table",), [((table.name,), measure(table)) for table in tables])


def _indexes(desk: Desk) -> Iterator[Metric]:
    data = desk.indexes.data
    yield _gauge("index_bytes", "Size of an index.", ("index",), (((i.name,), i.bytes) for i in data))
    yield _gauge(
        "index_bloat_bytes", "Estimated waste in an index.", ("index",), (((i.name,), i.bloat_bytes) for i in data)
    )
    yield _counter("index_scans", "Uses of an index.", ("index",), (((i.name,), i.scans) for i in data))


def _each(values: dict[str, Any]) -> Rows:
    return [((label,), value) for label, value in values.items()]


def _gauge(name: str, help_: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    return _filled(GaugeMetricFamily(f"crafely_database_{name}", help_, labels=labels), rows)


def _counter(name: str, help_: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    return _filled(CounterMetricFamily(f"crafely_database_{name}", help_, labels=labels), rows)


def _filled(family: Any, rows: Rows) -> Metric:
    for labels, value in rows:
        # What is not known is not shown.
        if value is not None:
            family.add_metric(labels, value)
    return family  # type: ignore[no-any-return]  # prometheus-client's two families share no add_metric
