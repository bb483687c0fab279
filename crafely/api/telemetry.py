"""What an operator sees: one JSON line in the log for each request, and the metrics that Prometheus scrapes.

Both are kept in plain Python where requests are served and handed over together: to the log after some milliseconds, to
prometheus-client once a second and before each scrape. One write, or one call of its observe(), costs as much as a
request's whole way through router and handler. What has not been handed over when a process is killed is lost.

Several workers: set PROMETHEUS_MULTIPROC_DIR to an empty folder before this module is imported (prometheus-client reads
it then), and call mark_dead for each worker that ends.
"""

import asyncio
import logging
import os
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping, Sized
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakKeyDictionary

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.multiprocess import mark_process_dead as _mark_dead

from crafely.api.redaction import redacted
from crafely.auth import Caller, KeyCache
from crafely.auth.hashing import Hasher
from crafely.auth.rate_limits import RateLimits
from crafely.db.coalesce import Coalescer
from crafely.db.listen import Listener

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. Lookups answer within one millisecond, an argon2 hash takes five, the time limits are some seconds.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Seconds that an access line waits for others. A round of the event loop often has but one of them.
_LOG_DELAY = 0.01
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REGISTRY = CollectorRegistry()

_requests = Counter("crafely_http_requests", "Answered requests.", ("method", "route", "status"), registry=REGISTRY)
_durations = Histogram(
    "crafely_http_request_duration_seconds",
    "From the request's head to its answer.",
    ("route",),
    buckets=_BUCKETS,
    registry=REGISTRY,
)
_statements = Histogram(
    "crafely_statement_duration_seconds",
    "SQL statements, by file.",
    ("statement",),
    buckets=_BUCKETS,
    registry=REGISTRY,
)
_statement_errors = Counter(
    "crafely_statement_errors", "SQL statements that failed, by file.", ("statement",), registry=REGISTRY
)
_pool_connections = Gauge(
    "crafely_pool_connections",
    "Connections of a pool, by state.",
    ("pool", "state"),
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
_pool_waiting = Gauge(
    "crafely_pool_waiting",
    "Requests that wait for a connection.",
    ("pool",),
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
_coalesced_items = Counter(
    "crafely_coalesced_items",
    "Callers whose statement was shared with others, by file.",
    ("statement",),
    registry=REGISTRY,
)
_coalesced_batches = Counter(
    "crafely_coalesced_batches", "Statements that were run for them, by file.", ("statement",), registry=REGISTRY
)
_coalesced_waiting = Gauge(
    "crafely_coalesced_waiting",
    "Callers that wait for the next statement, by file.",
    ("statement",),
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
_key_lookups = Counter(
    "crafely_key_cache_lookups",
    "API keys presented: hit, the cache knew; miss, the row was read.",
    ("result",),
    registry=REGISTRY,
)
_key_evictions = Counter(
    "crafely_key_cache_evictions", "Keys that the database told to have changed.", registry=REGISTRY
)
_key_entries = Gauge(
    "crafely_key_cache_entries", "API keys remembered.", registry=REGISTRY, multiprocess_mode="livesum"
)
_key_trusted = Gauge(
    "crafely_key_cache_trusted",
    "1 while every process hears of changed keys; 0 while one reads each key's row anew.",
    registry=REGISTRY,
    multiprocess_mode="livemin",
)
_listener_losses = Counter(
    "crafely_listener_losses", "Connections lost on which changed keys are told.", registry=REGISTRY
)
_hashes_waiting = Gauge(
    "crafely_argon2_waiting",
    "Secrets being hashed or waiting for it.",
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
_refusals = Counter("crafely_rate_limit_refusals", "Requests refused by a limit.", ("limit",), registry=REGISTRY)
_storage_away = Gauge(
    "crafely_rate_limit_storage_away",
    "Processes that count alone because the storage of rate limits does not answer.",
    registry=REGISTRY,
    multiprocess_mode="livesum",
)
_in_flight = Gauge(
    "crafely_http_requests_in_flight", "Requests being worked on.", registry=REGISTRY, multiprocess_mode="livesum"
)


class _Cell:
    """Durations that have not been handed over yet."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def move(self, histogram: Histogram, *labels: str) -> int:
        """Hands them over to a histogram and says how many they were."""
        count = sum(self.counts)
        if count:
            child = histogram.labels(*labels)
            # prometheus-client has no other way to add many observations at once; a test compares with observe().
            for value, new in zip(child._buckets, self.counts, strict=True):  # noqa: SLF001
                if new:
                    value.inc(new)
            child._sum.inc(self.total)  # noqa: SLF001
            self.counts, self.total = [0] * len(self.counts), 0.0
        return count


class Requests:
    """Counts requests: those being worked on, which whoever serves keeps in a container, and those answered."""

    def __init__(self) -> None:
        self.in_flight: Sized = ()
        self._cells: dict[tuple[str, str, int], _Cell] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. Takes the route's template, not the raw path: labels must stay few."""
        cell = self._cells.get((method, route, status))
        if cell is None:
            # Clients may invent methods, and then this branch is taken each time.
            key = (method if method in _METHODS else "OTHER", route, status)
            cell = self._cells.setdefault(key, _Cell())
        cell.counts[bisect_left(_BUCKETS, seconds)] += 1
        cell.total += seconds

    def hand_over(self) -> None:
        """Give all to prometheus-client."""
        _in_flight.set(len(self.in_flight))
        for (method, route, status), cell in self._cells.items():
            if count := cell.move(_durations, route):
                _requests.labels(method, route, str(status)).inc(count)


requests = Requests()
_statement_cells: dict[str, _Cell] = {}


def observe_statement(name: str, seconds: float, failed: bool = False) -> None:
    """Count one SQL statement by its file (``threads/list_for_agent``): its seconds, and whether it failed."""
    cell = _statement_cells.get(name)
    if cell is None:
        cell = _statement_cells[name] = _Cell()
    cell.counts[bisect_left(_BUCKETS, seconds)] += 1
    cell.total += seconds
    if failed:
        _statement_errors.labels(name).inc()


def hand_over() -> None:
    """Write the log lines and count the requests and statements that wait for it."""
    _output.flush()
    requests.hand_over()
    for name, cell in _statement_cells.items():
        cell.move(_statements, name)


@asynccontextmanager
async def handing_over() -> AsyncIterator[None]:
    """Hand over once a second, and at the end: workers are scraped through files, by whichever is asked."""

    async def repeat() -> None:
        while True:
            try:
                hand_over()
            except Exception:
                # A full disk, for example: serving goes on, and what was counted waits.
                log.exception("metrics and access lines were not handed over")
            await asyncio.sleep(1)

    task = asyncio.create_task(repeat(), name="hand_over")
    try:
        yield
    finally:
        task.cancel()
        hand_over()


def observe_pool(name: str, stats: Mapping[str, int]) -> None:
    """Show a pool as it is now. Takes its name and what psycopg_pool's get_stats() gives."""
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    _pool_connections.labels(name, "idle").set(idle)
    _pool_connections.labels(name, "busy").set(size - idle)
    _pool_waiting.labels(name).set(stats.get("requests_waiting", 0))


def observe_coalescer(statement: str, coalescer: Coalescer[Any, Any]) -> None:
    """Show a coalescer as it is now, and count what it has done since it was shown last."""
    _catch_up(_coalesced_items.labels(statement), coalescer, coalescer.items)
    _catch_up(_coalesced_batches.labels(statement), coalescer, coalescer.batches)
    _coalesced_waiting.labels(statement).set(coalescer.waiting)


def observe_keys(cache: KeyCache, listener: Listener, hasher: Hasher) -> None:
    """Show what API keys are verified with as it is now, and count what was done since it was shown last."""
    _catch_up(_key_lookups.labels("hit"), cache, cache.hits)
    _catch_up(_key_lookups.labels("miss"), cache, cache.misses)
    _catch_up(_key_evictions, cache, cache.evictions)
    _catch_up(_listener_losses, listener, listener.losses)
    _key_entries.set(len(cache))
    _key_trusted.set(cache.trusted)
    _hashes_waiting.set(hasher.waiting)


def observe_rate_limits(limits: RateLimits) -> None:
    """Count what limits have refused since they were shown last, and show whether their storage is away."""
    for name, total in limits.refusals.items():
        _catch_up(_refusals.labels(name), limits, total)
    _storage_away.set(limits.away)


def _catch_up(counter: Counter, source: object, total: int) -> None:
    """Bring a counter up to a total that is kept elsewhere, where the hot path adds to a plain number."""
    counted = _counted.setdefault(source, {})
    counter.inc(total - counted.get(counter, 0))
    counted[counter] = total


_counted: WeakKeyDictionary[object, dict[Counter, int]] = WeakKeyDictionary()


def metrics() -> bytes:
    """Give the metrics in Prometheus's text format (CONTENT_TYPE), of all workers where there are several."""
    hand_over()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    _Workers(registry)  # type: ignore[no-untyped-call]  # prometheus-client leaves it unannotated
    return generate_latest(registry)


class _Workers(MultiProcessCollector):
    def collect(self) -> Any:
        """Adds up the workers' files. One that a worker makes at this moment is empty, which upsets merge()."""
        files = []
        for file in Path(self._path).glob("*.db"):
            with suppress(FileNotFoundError):  # the gauges of a worker that has just ended
                if file.stat().st_size:
                    files.append(str(file))
        return self.merge(files)  # type: ignore[no-untyped-call]  # prometheus-client leaves it unannotated


def mark_dead(pid: int) -> None:
    """Take a worker that has ended out of the gauges. For gunicorn's child_exit hook."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        _mark_dead(pid)  # type: ignore[no-untyped-call]  # prometheus-client leaves it unannotated


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, the record's ``fields``, and the traceback if any.

    Secrets in a message or a traceback are blotted out: API keys, their hashes, session tokens, a database's password.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = redacted(self.formatException(record.exc_info))
        return _encode(entry).decode(errors="replace")


_encoder = msgspec.json.Encoder(enc_hook=str)
_encode = _encoder.encode
_access = logging.getLogger("crafely.access")


class _Access(msgspec.Struct, rename="camel", gc=False):
    """The line of one request."""

    time: datetime
    level: str
    logger: str
    message: str
    request_id: str
    method: str
    route: str
    status: int
    ms: float
    user_id: str | None
    key_id: str | None


class _Output:
    """Where access lines go: the stream that configure_logging was given. One write for all of some milliseconds."""

    def __init__(self) -> None:
        self.stream: TextIO | None = None
        self.lines: list[_Access] = []

    def flush(self) -> None:
        lines, self.lines = self.lines, []
        if lines and self.stream is not None:
            self.stream.write(_encoder.encode_lines(lines).decode())


_output = _Output()


def log_request(request_id: str, method: str, route: str, status: int, seconds: float, caller: Caller | None) -> None:
    """Write the access line of one request, if configure_logging has been called with level info or debug.

    It goes past logging's own records: they cost more than the rest of a request's bookkeeping together.
    """
    if _output.stream is None or not _access.isEnabledFor(logging.INFO):
        return
    user_id, key_id = (caller.user_id, caller.api_key_id) if caller is not None else (None, None)
    if not _output.lines:
        asyncio.get_running_loop().call_later(_LOG_DELAY, _output.flush)
    # round() would take longer than all the rest of this function.
    now, ms = datetime.now(UTC), int(seconds * 1e6) / 1e3
    line = _Access(now, "info", _access.name, "request", request_id, method, route, status, ms, user_id, key_id)
    _output.lines.append(line)


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log record of the process as JSON lines to a stream (None: standard error), from a level on."""
    _output.flush()
    _output.stream = stream or sys.stderr
    handler = logging.StreamHandler(_output.stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp's own line for each request would say the same without the request id.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
