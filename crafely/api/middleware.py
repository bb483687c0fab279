"""What surrounds every handler, in this order: request id, telemetry, problems, time limit.

It is one function and not four middlewares: each layer of aiohttp's costs every request an await.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from random import getrandbits
from time import perf_counter
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from crafely.api import problems, telemetry
from crafely.api.problems import Problem
from crafely.api.wire import CALLER_KEY, HEADERS, REQUEST_ID_KEY

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = "X-Request-Id"
# The route of a request that no line of the route table matches.
UNMATCHED = "(none)"

# An API key in the wrong header must not end up in the log and the audit trail.
_REQUEST_ID = re.compile(r"(?!crf_)[A-Za-z0-9._-]{1,128}")

log = logging.getLogger("crafely")


def middleware(request_timeout: float) -> Middleware:
    """Make the application's one middleware. Takes the seconds that a handler may take before it is cancelled.

    The limit is kept to a tenth: a request ends between one and 1.1 times that long after it began.
    """
    deadlines = _Deadlines(request_timeout)

    @web.middleware
    async def surround(request: web.Request, handler: Next) -> web.StreamResponse:
        begin = perf_counter()
        given = request.headers.get(REQUEST_ID)
        request_id = given if given and _REQUEST_ID.fullmatch(given) else f"{getrandbits(128):032x}"
        request[REQUEST_ID_KEY] = request_id
        telemetry.in_flight.inc()
        task = deadlines.begin()
        response: web.StreamResponse
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            if task not in deadlines.passed:
                raise
            response = _answer(Problem("timeout"), request, request_id)
        except Exception as error:
            response = _answer(error, request, request_id)
        finally:
            deadlines.end(task)
            telemetry.in_flight.dec()
        response.headers[REQUEST_ID] = request_id
        method, route, seconds = request.method, _route(request), perf_counter() - begin
        telemetry.observe_request(method, route, response.status, seconds)
        telemetry.log_request(request_id, method, route, response.status, seconds, request.get(CALLER_KEY))
        return response

    return surround


class _Deadlines:
    """One timer for all requests: asyncio.timeout would make and close one of libuv's for each, a tenth of its cost."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # In the order of their deadlines, for all have the same time.
        self._running: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.passed: set[asyncio.Task[Any]] = set()

    def begin(self) -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler runs in a task
        self._running[task] = perf_counter() + self._seconds
        if self._timer is None:
            self._arm()
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        self._running.pop(task, None)
        if task in self.passed:
            self.passed.discard(task)
            task.uncancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds / 10, self._sweep)

    def _sweep(self) -> None:
        now = perf_counter()
        for task, deadline in list(self._running.items()):
            if deadline > now:
                break
            del self._running[task]
            self.passed.add(task)
            task.cancel()
        self._timer = None
        if self._running:
            self._arm()


def _answer(error: Exception, request: web.Request, request_id: str) -> web.Response:
    problem = problems.from_exception(error)
    if problem is None:
        fields = {"requestId": request_id, "method": request.method, "route": _route(request)}
        log.error("a request failed unexpectedly", exc_info=error, extra={"fields": fields})
        problem = Problem("internal")
    elif problem.status >= 500 and problem is not error:
        # The client is told less than the operator needs.
        log.warning("%s: %s", type(error).__name__, error, extra={"fields": {"requestId": request_id}})
    return web.Response(
        body=problem.body(request_id),
        status=problem.status,
        headers={**HEADERS, "Content-Type": problems.CONTENT_TYPE, **problem.headers},
    )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return UNMATCHED if resource is None else resource.canonical
