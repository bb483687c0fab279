"""Requests whose every answer is looked at: the status is one that is documented, the content what it must be."""

import time
from array import array
from collections import Counter, defaultdict
from typing import Any

import aiohttp

from tests.api.conftest import Answer, check, operation

# Longer than the server may take for a request.
ANSWER_SECONDS = 60
# Of each operation the first answers are held against their whole schema, and from then on one of so many: that takes
# a millisecond, which the server needs more.
WHOLE, ONE_OF = 20, 25


class Busy(Exception):  # noqa: N818 - an answer that is documented, no error
    """503: the server had no room, and nothing was stored. Among faults also no answer, and nobody knows what was."""


class Answers:
    """What all clients share: the connections, and what came over them."""

    def __init__(self, address: str, *, faults: bool) -> None:
        self.faults = faults
        # Requests take whatever connection is free, so each user talks to all workers.
        self._http = aiohttp.ClientSession(
            address,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        )
        # A DELETE whose connection is lost was done, perhaps. aiohttp would send it again and say nothing of the first
        # one; it has no public name for this.
        self._http._retry_connection = False
        self.statuses: Counter[int] = Counter()
        # What became of the requests that were not answered as they should: codes of 503s, and names of errors.
        self.refusals: Counter[str] = Counter()
        # When the connection was lost instead of an answer, in monotonic seconds.
        self.lost: list[float] = []
        # How many requests ended in each second since the beginning, and how.
        self.timeline: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.began = time.monotonic()
        # Request ids of changes that were answered with success, for the audit.
        self.changes: set[str] = set()
        # Of each operation (POST /v1/usage): how long its answers took, in seconds.
        self.seconds: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    @property
    def count(self) -> int:
        return self.statuses.total()

    def start(self) -> None:
        """From now on it is told how long requests take, and what became of them."""
        self.began = time.monotonic()
        self.seconds.clear()
        self.timeline.clear()

    async def close(self) -> None:
        await self._http.close()

    def _note(self, how: str) -> None:
        self.timeline[int(time.monotonic() - self.began)][how] += 1

    async def ask(  # what a request has
        self, token: str, method: str, path: str, expect: int | set[int], name: str, **options: Any
    ) -> Answer:
        """Takes what aiohttp's request takes. Raises Busy; every other status than the expected one is an error."""
        begin = time.monotonic()
        headers = {"Authorization": f"Bearer {token}", **options.pop("headers", {})}
        try:
            async with self._http.request(method, path, headers=headers, **options) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            # A worker that is killed takes its connections along; to hang is something else.
            if not self.faults or isinstance(error, TimeoutError):
                raise
            self._note("lost")
            self.refusals[type(error).__name__] += 1
            self.lost.append(time.monotonic())
            raise Busy from None
        self.statuses[answer.status] += 1
        seconds = self.seconds[name]
        seconds.append(time.monotonic() - begin)
        if len(seconds) <= WHOLE or len(seconds) % ONE_OF == 0:
            check(method, path, answer)
        assert answer.status in _documented(method, path, name), f"{method} {path}: {answer.status}"
        if answer.status == 503:
            # After a time limit nobody knows what was stored, and without faults nothing should take that long.
            assert self.faults or answer["code"] != "timeout", f"{method} {path}"
            assert int(answer.headers["Retry-After"]) >= 1
            self._note("refused")
            self.refusals[f"503 {answer['code']}"] += 1
            raise Busy
        self._note("answered")
        expected = expect if isinstance(expect, set) else {expect}
        assert answer.status in expected, f"{method} {path}: {answer.status} {answer.raw[:1000]!r}"
        return answer


# What the description has for each operation, by the name under which it is counted.
_statuses: dict[str, frozenset[int]] = {}


def _documented(method: str, path: str, name: str) -> frozenset[int]:
    if name not in _statuses:
        found = operation(method, path)
        assert found is not None
        _statuses[name] = frozenset(int(status) for status in found["responses"])
    return _statuses[name]
