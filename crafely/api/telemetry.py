"""What an operator sees: one JSON line in the log for each request, and the metrics that Prometheus scrapes.

Several workers: set PROMETHEUS_MULTIPROC_DIR to an empty folder before this module is imported (prometheus-client reads
it then), and call mark_dead for each worker that ends.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.multiprocess import mark_process_dead as _mark_dead

from crafely.auth import Caller

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. Lookups answer within one millisecond, an argon2 hash takes five, the time limits are some seconds.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# API keys and JSON web tokens, as they might stand in an exception's text.
_SECRET = re.compile(r"\bcrf_[a-z]{2,8}_[0-9A-Za-z_]+|\beyJ[\w-]{8,}\.[\w.-]*")
_REDACTED = "(secret)"

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
in_flight = Gauge(
    "crafely_http_requests_in_flight", "Requests being worked on.", registry=REGISTRY, multiprocess_mode="livesum"
)


# Finding the child of some labels costs more than counting: each child is looked up once.
@lru_cache(maxsize=4096)
def _request_metrics(method: str, route: str, status: int) -> tuple[Any, Any]:
    return _requests.labels(method, route, str(status)), _durations.labels(route)


@lru_cache(maxsize=4096)
def _statement_metrics(name: str) -> tuple[Any, Any]:
    return _statements.labels(name), _statement_errors.labels(name)


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answer. Takes the route's template, not the raw path: labels must stay few."""
    requests, durations = _request_metrics(method if method in _METHODS else "OTHER", route, status)
    requests.inc()
    durations.observe(seconds)


def observe_statement(name: str, seconds: float, failed: bool = False) -> None:
    """Count one SQL statement by its file (``threads/list_for_agent``): its seconds, and whether it failed."""
    durations, errors = _statement_metrics(name)
    durations.observe(seconds)
    if failed:
        errors.inc()


def observe_pool(name: str, stats: Mapping[str, int]) -> None:
    """Show a pool as it is now. Takes its name and what psycopg_pool's get_stats() gives."""
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    _pool_connections.labels(name, "idle").set(idle)
    _pool_connections.labels(name, "busy").set(size - idle)
    _pool_waiting.labels(name).set(stats.get("requests_waiting", 0))


def metrics() -> bytes:
    """Give the metrics in Prometheus's text format (CONTENT_TYPE), of all workers where there are several."""
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

    API keys and session tokens in a message or a traceback are blotted out.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _SECRET.sub(_REDACTED, record.getMessage()),
        }
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["exception"] = _SECRET.sub(_REDACTED, self.formatException(record.exc_info))
        return _encode(entry).decode(errors="replace")


_encode = msgspec.json.Encoder(enc_hook=str).encode
_access = logging.getLogger("crafely.access")


class _Access(msgspec.Struct, rename="camel"):
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
    """Where access lines go: the stream that configure_logging was given."""

    stream: TextIO | None = None


def log_request(request_id: str, method: str, route: str, status: int, seconds: float, caller: Caller | None) -> None:
    """Write the access line of one request, if configure_logging has been called with level info or debug.

    It goes past logging's own records: they cost more than the rest of a request's bookkeeping together.
    """
    if _Output.stream is None or not _access.isEnabledFor(logging.INFO):
        return
    user_id, key_id = (caller.user_id, caller.api_key_id) if caller is not None else (None, None)
    now, ms = datetime.now(UTC), round(seconds * 1000, 3)
    line = _Access(now, "info", _access.name, "request", request_id, method, route, status, ms, user_id, key_id)
    _Output.stream.write(f"{_encode(line).decode()}\n")


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log record of the process as JSON lines to a stream (None: standard error), from a level on."""
    _Output.stream = stream or sys.stderr
    handler = logging.StreamHandler(_Output.stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aiohttp's own line for each request would say the same without the request id.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
