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
    """503: the server had no room, and nothing was stored."""


class Answers:
    """What all clients share: the connections, and what came over them."""

    def __init__(self, address: str) -> None:
        # Requests take whatever connection is free, so each user talks to all workers.
        self._http = aiohttp.ClientSession(
            address,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        )
        self.statuses: Counter[int] = Counter()
        # Of each operation (POST /v1/usage): how long its answers took, in seconds.
        self.seconds: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    @property
    def count(self) -> int:
        return self.statuses.total()

    async def close(self) -> None:
        await self._http.close()

    async def ask(self, token: str, method: str, path: str, expect: int, name: str, **options: Any) -> Answer:
        """Takes what aiohttp's request takes. Raises Busy; every other status than the expected one is an error."""
        begin = time.monotonic()
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.request(method, path, headers=headers, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self.statuses[answer.status] += 1
        seconds = self.seconds[name]
        seconds.append(time.monotonic() - begin)
        if len(seconds) <= WHOLE or len(seconds) % ONE_OF == 0:
            check(method, path, answer)
        assert answer.status in _documented(method, path, name), f"{method} {path}: {answer.status}"
        if answer.status == 503:
            # After a time limit nobody knows what was stored, and here nothing should take that long.
            assert answer["code"] != "timeout", f"{method} {path}"
            raise Busy
        assert answer.status == expect, f"{method} {path}: {answer.status} {answer.raw[:1000]!r}"
        return answer


# What the description has for each operation, by the name under which it is counted.
_statuses: dict[str, frozenset[int]] = {}


def _documented(method: str, path: str, name: str) -> frozenset[int]:
    if name not in _statuses:
        found = operation(method, path)
        assert found is not None
        _statuses[name] = frozenset(int(status) for status in found["responses"])
    return _statuses[name]
