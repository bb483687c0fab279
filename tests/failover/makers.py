"""Clients that make agents and keys, each with an Idempotency-Key, until they are told that it is done."""

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from typing import Any

import aiohttp
import psycopg

from tests.api.conftest import Answer, check

ANSWER_SECONDS, PAUSE_SECONDS = 15, 0.05
PATHS = {"agent": "/v1/agents", "key": "/v1/api-keys"}
MADE = {"agent": "select name, id from agents", "key": "select name, id from api_keys"}


class Makers:
    """Some for each kind, all at once, until the block is left."""

    def __init__(self, address: str, key: str, clients: int = 4) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {key}"}
        self._clients = clients
        self._numbers = itertools.count()
        self._end = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # Of each kind: what was acknowledged, by its name, and with what; names that were sent.
        self.made: dict[str, dict[str, str]] = {kind: {} for kind in PATHS}
        self.sent: dict[str, set[str]] = {kind: set() for kind in PATHS}
        # The plaintext of keys, where their first answer arrived.
        self.tokens: dict[str, str] = {}
        self.outcomes: Counter[str] = Counter()
        self.replayed = 0
        # When the latest request of each kind that was acknowledged had been sent.
        self.latest: defaultdict[str, float] = defaultdict(float)

    async def __aenter__(self) -> "Makers":
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        self._http = aiohttp.ClientSession(self._address, headers=self._headers, timeout=timeout)
        kinds = [kind for kind in PATHS for _ in range(self._clients)]
        self._tasks = [asyncio.create_task(self._make(kind)) for kind in kinds]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self._http.close()

    async def _make(self, kind: str) -> None:
        names: list[str] = []
        while not self._end.is_set():
            name = f"{kind} {next(self._numbers)}"
            names.append(name)
            # Then one of those before, which may have been answered by another primary.
            for one in (name, names[len(names) // 3]):
                # Not given up: what became of a request that was cut off is known when it is answered.
                while not await self._post(kind, one):  # noqa: ASYNC110 - another process says when
                    await asyncio.sleep(PAUSE_SECONDS)

    async def _post(self, kind: str, name: str) -> bool:
        """Whether it was acknowledged; sent again it has the same answer."""
        body: dict[str, Any] = {"name": name, **({"instructions": "Stay."} if kind == "agent" else {})}
        self.sent[kind].add(name)
        begin = time.monotonic()
        try:
            async with self._http.post(PATHS[kind], json=body, headers={"Idempotency-Key": name}) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.outcomes[type(error).__name__] += 1
            return False
        check("POST", PATHS[kind], answer)
        self.outcomes[str(answer.status)] += 1
        # One that was cut off may still be under way: that is 409.
        assert answer.status in {201, 409, 503}, answer.raw
        if answer.status != 201:
            return False
        assert self.made[kind].setdefault(name, answer["id"]) == answer["id"]
        if "Idempotency-Replayed" in answer.headers:
            self.replayed += 1
        elif kind == "key":
            self.tokens[name] = answer["key"]
        self.latest[kind] = max(self.latest[kind], begin)
        return True

    def check(self, connection: psycopg.Connection[Any]) -> int:
        """What was acknowledged is there, and nothing twice. Gives how many were acknowledged."""
        for kind, names in self.made.items():
            rows = [row for row in connection.execute(MADE[kind].encode()) if str(row[0]).startswith(f"{kind} ")]
            stored = dict(rows)
            assert len(rows) == len(stored), f"one {kind} was made twice"
            assert stored.keys() <= self.sent[kind]
            assert {name: stored.get(name) for name in names} == names
        return sum(map(len, self.made.values()))
