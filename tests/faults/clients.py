"""Requests of every kind, and what may come back while something is wrong: a 503 that says so, or the truth."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.api.conftest import Answer, check
from tests.cli.conftest import Serving
from tests.torture.scene import Scene

# An answer that takes longer is none: all limits together (SETTINGS) are less than half of it.
ANSWER_SECONDS = 30
# After that long somebody would have to restart the server, which is a failure.
RECOVERY_SECONDS = 60
# Short limits, so that what they bound is over soon.
SETTINGS = {
    "CRAFELY_STATEMENT_TIMEOUT": "1",
    "CRAFELY_POOL_TIMEOUT": "1",
    "CRAFELY_REQUEST_TIMEOUT": "10",
}
# 503s, and what the client is told.
PASSING = {"unavailable", "retry", "timeout"}

READS = ("agents", "stats", "key")
WRITES = ("new agent", "usage", "usage batch")
DATABASE = (*READS, *WRITES)


class Clients:
    """Asks everything at once, again and again, and holds every answer to its description."""

    def __init__(self, serving: Serving, keys: list[str], http: aiohttp.ClientSession) -> None:
        self._serving = serving
        self._keys = keys
        self._http = http
        self._numbers = itertools.count()
        # The ids of agents whose making was acknowledged, and how many records were.
        self.agents: set[str] = set()
        self.records = 0

    async def ask(self, kind: str) -> Answer:
        """One request. Never an undocumented answer, a 500, or none at all."""
        number = next(self._numbers)
        record = {"model": "gpt-4o", "tokensIn": 1}
        method, path, body = {
            "healthz": ("GET", "/healthz", None),
            "readyz": ("GET", "/readyz", None),
            "me": ("GET", "/v1/me", None),
            "agents": ("GET", "/v1/agents", None),
            "stats": ("GET", "/v1/usage/stats", None),
            "key": ("GET", "/v1/api-keys", None),
            "verify": ("POST", "/v1/api-keys/verify", {"key": self._keys[1]}),
            "new agent": ("POST", "/v1/agents", {"name": f"agent {number}", "instructions": "Stay."}),
            "usage": ("POST", "/v1/usage", record),
            "usage batch": ("POST", "/v1/usage", [record, record]),
        }[kind]
        options: dict[str, Any] = {} if body is None else {"json": body}
        headers = {"Authorization": f"Bearer {self._keys[0]}"} if path.startswith("/v1") else {}
        async with self._http.request(method, path, headers=headers, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
        check(method, path, answer)
        if answer.status == 503:
            assert answer["code"] in PASSING, answer.raw
            assert int(answer.headers["Retry-After"]) >= 1
        else:
            assert answer.status in {200, 201}, f"{kind}: {answer.status} {answer.raw!r}"
        if answer.status == 201 and kind == "new agent":
            self.agents.add(answer["id"])
        elif answer.status == 201:
            self.records += answer["recorded"]
        return answer

    async def round(self, *kinds: str) -> dict[str, Answer]:
        """All kinds of requests at once, or some of them."""
        kinds = kinds or ("healthz", "readyz", "me", "verify", *DATABASE)
        return dict(zip(kinds, await asyncio.gather(*map(self.ask, kinds)), strict=True))

    async def statuses(self, *kinds: str) -> dict[str, int]:
        return {kind: answer.status for kind, answer in (await self.round(*kinds)).items()}

    async def recovered(self) -> None:
        """Waits until everything is answered as ever; nobody has helped the server."""
        async with asyncio.timeout(RECOVERY_SECONDS):
            while 503 in (await self.statuses()).values():  # noqa: ASYNC110 - another process says when
                await asyncio.sleep(0.05)
        assert self._serving.process.poll() is None, self._serving.err[-3000:]

    async def until_refused(self) -> str:
        """Makes large agents until one is refused. Gives the code of the problem."""
        headers = {"Authorization": f"Bearer {self._keys[0]}"}
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                # Random, so that nothing is saved by compressing it.
                body = {"name": "large", "instructions": secrets.token_urlsafe(30_000)}
                async with self._http.post("/v1/agents", json=body, headers=headers) as response:
                    answer = Answer(response.status, response.headers, await response.read())
                check("POST", "/v1/agents", answer)
                if answer.status != 201:
                    return str(answer["code"])
                self.agents.add(answer["id"])

    async def nothing_lost(self) -> None:
        """What was acknowledged is there, and nothing twice."""
        found: set[str] = set()
        cursor = None
        while True:
            params = {"take": "100", **({"cursor": cursor} if cursor else {})}
            headers = {"Authorization": f"Bearer {self._keys[0]}"}
            async with self._http.get("/v1/agents", params=params, headers=headers) as response:
                page = await response.json()
            found |= {agent["id"] for agent in page["data"]}
            if (cursor := page["nextCursor"]) is None:
                break
        assert self.agents <= found


@asynccontextmanager
async def clients(scene: Scene) -> AsyncIterator[Clients]:
    """Clients who have been served; and are in the end."""
    serving = scene.serving
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    # A connection for each request: a worker that is killed takes its connections along, which is no answer of ours.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(serving.address, timeout=timeout, connector=connector) as http:
        made = Clients(serving, scene.keys, http)
        await made.recovered()
        yield made
        await made.recovered()
        await made.nothing_lost()
