"""What surrounds every handler, in this order: request id, telemetry, time limit, problems."""

import asyncio
import logging
import re
from random import randbytes
from time import perf_counter
from typing import Any

from aiohttp import hdrs, web

from crafely.api import problems, telemetry
from crafely.api.answer import Answer
from crafely.api.problems import Problem
from crafely.api.router import Router
from crafely.api.wire import Call, current_request

REQUEST_ID = "X-Request-Id"
# The route of a request that no line of the route table matches.
UNMATCHED = "(none)"
# The status, in log and metrics alone, of a request whose client did not wait for the answer.
GONE = 499

# An API key or a session token in the wrong header must not end up in the log and the audit trail.
_REQUEST_ID = re.compile(r"(?!.*(?:crf_[a-z]{2,8}_|eyJ[\w-]{8,}\.))[A-Za-z0-9._-]{1,128}")

log = logging.getLogger("crafely")


def _new_id() -> str:
    return randbytes(16).hex()  # noqa: S311 - a name, not a secret


class Dispatch:
    """Answers requests.

    Takes the router, what the handlers work with, and the seconds that one of them may take before it is cancelled. The
    limit is kept to a tenth: a request ends between one and 1.1 times that long after it began.
    """

    def __init__(self, router: Router, services: Any, request_timeout: float) -> None:
        self._find = router.find
        self._services = services
        self._deadlines = _Deadlines(request_timeout)
        telemetry.requests.in_flight = self._deadlines.running

    async def __call__(self, request: web.BaseRequest) -> Answer:
        """Give the answer. It raises nothing but CancelledError, when the server stops."""
        begin = perf_counter()
        headers = request.headers
        given = headers.get(REQUEST_ID)
        request_id = given if given and _REQUEST_ID.fullmatch(given) else _new_id()
        call = Call(request, request_id, self._services)
        current_request.set(request_id)
        deadlines = self._deadlines
        deadlines.running[call] = begin + deadlines.seconds
        if not deadlines.watching:
            deadlines.watch()
        route = UNMATCHED
        try:
            (route, serve), call.values = self._find(request)
            answer = await serve(call)
        except asyncio.CancelledError:
            if not deadlines.passed(call):
                raise
            if request.content.is_eof():
                answer = _refusal(Problem("timeout"), call, route)
            else:
                answer = _refusal(Problem("request_timeout"), call, route)
                answer.force_close()
        except Exception as error:
            answer = _refusal(error, call, route)
        finally:
            if deadlines.running.pop(call) is None:
                request.task.uncancel()
        answer.request_id = request_id
        answer.limits = call.limits
        if hdrs.EXPECT in headers and not request.content.is_eof():
            # The client may not send its body now, and what comes next must not be taken for it.
            answer.force_close()
        method, status, seconds = request.method, answer.status, perf_counter() - begin
        telemetry.requests.observe(method, route, status, seconds)
        telemetry.log_request(request_id, method, route, status, seconds, call.caller)
        return answer


def broken(request: web.BaseRequest, code: str) -> Answer:
    """Give the answer to what is no request, of which nothing is known, and end the connection."""
    request_id = _new_id()
    answer = _problem(Problem(code), request_id)
    answer.force_close()
    telemetry.requests.observe(request.method, UNMATCHED, answer.status, 0)
    telemetry.log_request(request_id, request.method, UNMATCHED, answer.status, 0, None)
    return answer


class _Deadlines:
    """One timer for all requests: asyncio.timeout would make and close one of libuv's for each, a tenth of its cost."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # In the order of their deadlines, for all have the same time. None: it has passed.
        self.running: dict[Call, float | None] = {}
        self.watching = False

    def passed(self, call: Call) -> bool:
        return self.running[call] is None

    def watch(self) -> None:
        self.watching = True
        asyncio.get_running_loop().call_later(self.seconds / 10, self._sweep)

    def _sweep(self) -> None:
        now = perf_counter()
        for call, deadline in self.running.items():
            if deadline is not None:
                if deadline > now:
                    break
                self.running[call] = None
                call.request.task.cancel()
        self.watching = False
        if self.running:
            self.watch()


def _refusal(error: Exception, call: Call, route: str) -> Answer:
    if isinstance(error, ConnectionError) and call.request.transport is None:
        # It left while its body was read. Nobody is there to read this, and nothing of ours has failed.
        return Answer(GONE, b"")
    problem = problems.from_exception(error)
    if problem is None:
        fields = {"requestId": call.request_id, "method": call.request.method, "route": route}
        log.error("a request failed unexpectedly", exc_info=error, extra={"fields": fields})
        problem = Problem("internal")
    elif problem.status >= 500 and problem is not error:
        # The client is told less than the operator needs.
        log.warning("%s: %s", type(error).__name__, error, extra={"fields": {"requestId": call.request_id}})
    return _problem(problem, call.request_id)


def _problem(problem: Problem, request_id: str) -> Answer:
    answer = Answer(problem.status, problem.body(request_id), problems.CONTENT_TYPE, problem.headers)
    answer.request_id = request_id
    return answer
