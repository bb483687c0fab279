"""What operators and programmers ask of the server itself."""

import msgspec

from crafely.api import telemetry
from crafely.api.docs import HEADERS, PAGE
from crafely.api.wire import Call, Problem


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: str = "ok"


async def healthz(call: Call) -> Health:  # noqa: ARG001 - every handler takes the call
    """Is the process alive?

    Answers 200 while it can answer at all. It asks nothing of the database: a restart would not mend that.
    """
    return Health()


async def readyz(call: Call) -> Health:
    """Can the process serve?

    200 when the database is reached and its migrations are those of this release, else 503 with the reason.
    """
    if reason := await call.services.not_ready():
        raise Problem("unavailable", f"Not ready: {reason}.")
    return Health(status="ready")


async def metrics(call: Call) -> bytes:
    """Read the metrics.

    In the text format of Prometheus: requests and their latency by route, pools, statements by file. What begins with
    crafely_database_ is what the database says itself; one worker asks it, twice a minute.
    """
    await call.services.observe()
    return telemetry.metrics() + bytes(call.services.metrics.text())


async def openapi(call: Call) -> bytes:
    """Read this description.

    OpenAPI 3.1, made from the route table that serves.
    """
    return bytes(call.services.openapi)


async def docs(call: Call) -> bytes:
    """Browse this description.

    A page for people. It needs nothing from the internet.
    """
    call.headers.update(HEADERS)
    return PAGE
