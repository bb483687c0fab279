"""Faults by chance, one after another, while a load goes on: what was done, when, and how soon all was well again."""

import asyncio
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import aiohttp

from tests.cli.conftest import until
from tests.faults import faults
from tests.soak.answers import Answers
from tests.torture.scene import WORKERS, Scene

# Faults that last do so for this long.
LASTING = 2.0
# After that long somebody would have to restart the server, which is a failure.
RECOVERY_SECONDS = 60
CROWD = 100
HALF = b"POST /v1/usage HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"


def kill_worker(scene: Scene) -> None:
    victim = faults.kill_worker(scene)
    faults.replaced(scene, victim, WORKERS)


def kill_database(scene: Scene) -> None:
    with faults.killed(scene):
        pass


def restart_fast(scene: Scene) -> None:
    scene.restart("fast")


def restart_at_once(scene: Scene) -> None:
    scene.restart("immediate")


def freeze(scene: Scene) -> None:
    with faults.frozen(scene):
        faults.wait(LASTING)


def use_up(scene: Scene) -> None:
    with faults.used_up(scene):
        faults.wait(LASTING)


def read_only(scene: Scene) -> None:
    with faults.read_only(scene):
        faults.wait(LASTING)


def lock(scene: Scene) -> None:
    with faults.locked(scene, "agents", "usage_daily"):
        faults.wait(LASTING)


def connection(scene: Scene) -> socket.socket:
    host, _, port = scene.serving.address.rpartition("//")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def leave(scene: Scene) -> None:
    """Clients leave in the middle of their bodies."""
    for _ in range(CROWD):
        with connection(scene) as sock:
            sock.sendall(HALF % scene.keys[0].encode() + b'Content-Length: 1000\r\n\r\n{"model": ')


def slow_loris(scene: Scene) -> None:
    """Clients send a head that never ends."""
    crowd = [connection(scene) for _ in range(CROWD)]
    end = time.monotonic() + LASTING
    for sock in crowd:
        sock.sendall(HALF % scene.keys[0].encode())
    while time.monotonic() < end:
        for sock in crowd:
            with suppress(OSError):
                sock.sendall(b"X: y\r\n")
        time.sleep(0.2)
    for sock in crowd:
        sock.close()


WORKER_KILLED = "a worker killed -9"
KINDS: dict[str, Callable[[Scene], None]] = {
    WORKER_KILLED: kill_worker,
    "PostgreSQL killed -9": kill_database,
    "PostgreSQL restarted, fast": restart_fast,
    "PostgreSQL restarted, immediate": restart_at_once,
    f"PostgreSQL frozen for {LASTING:g} s": freeze,
    "all connections terminated": faults.terminate_all,
    f"all connections used by others for {LASTING:g} s": use_up,
    f"read-only for {LASTING:g} s": read_only,
    f"two tables locked for {LASTING:g} s": lock,
    f"{CROWD} clients leave amid their bodies": leave,
    f"{CROWD} slow-loris clients for {LASTING:g} s": slow_loris,
}


class Fault(NamedTuple):
    """One of them: when it began, in seconds since the load did, how long it lasted, and then until all was well."""

    name: str
    at: float
    seconds: float
    recovery: float
    refused: int
    lost: int


class Havoc:
    """Faults in an order by chance, each kind before any comes twice."""

    def __init__(self, scene: Scene, answers: Answers, seed: int) -> None:
        self._scene = scene
        self._answers = answers
        self._dice = random.Random(seed)  # noqa: S311 - the same faults with the same seed
        self.done: list[Fault] = []
        # What is being done at this moment.
        self.now = ""

    async def go_on(self, pause: float, seconds: float) -> None:
        """One in so many seconds, for so long; none in the last ``pause``."""
        begin = time.monotonic()
        kinds: list[str] = []
        async with aiohttp.ClientSession(
            self._scene.serving.address,
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=RECOVERY_SECONDS),
        ) as self._http:
            for number in range(1, max(2, int(seconds / pause))):
                await asyncio.sleep(max(0.0, begin + number * pause - time.monotonic()))
                kinds = kinds or self._dice.sample(list(KINDS), len(KINDS))
                self.done.append(await self._do(kinds.pop(), begin))

    async def _do(self, name: str, begin: float) -> Fault:
        answers = self._answers
        refused, lost = answers.refusals.total() - len(answers.lost), len(answers.lost)
        at, self.now = time.monotonic(), name
        await asyncio.to_thread(KINDS[name], self._scene)
        over = time.monotonic()
        recovered = await self._recovered(over)
        # What it leaves behind comes in the next moment.
        await asyncio.sleep(0.5)
        self.now = ""
        return Fault(
            name,
            at - begin,
            over - at,
            recovered - over,
            answers.refusals.total() - len(answers.lost) - refused,
            len(answers.lost) - lost,
        )

    async def _recovered(self, over: float) -> float:
        """When the first of some answers in a row came that were as they should be, on connections of their own."""
        first, count = 0.0, 0
        while count < 4 * WORKERS:
            asked = time.monotonic()
            assert asked < over + RECOVERY_SECONDS, "never served again"
            if await self._served():
                first = time.monotonic() if count == 0 else first
                count += 1
            else:
                count = 0
                await asyncio.sleep(0.02)
        await asyncio.to_thread(until, lambda: len(self._scene.workers()) == WORKERS, "all workers")
        return first

    async def _served(self) -> bool:
        headers = {"Authorization": f"Bearer {self._scene.keys[-1]}"}
        try:
            async with self._http.get("/v1/agents", headers=headers) as read:
                pass
            async with self._http.post("/v1/usage", headers=headers, json={"model": "probe"}) as written:
                pass
            async with self._http.get("/readyz") as ready:
                return (read.status, written.status, ready.status) == (200, 201, 200)
        except aiohttp.ClientError:
            return False

    def by_kind(self) -> dict[str, list[Fault]]:
        found: dict[str, list[Fault]] = {}
        for fault in self.done:
            found.setdefault(fault.name, []).append(fault)
        return dict(sorted(found.items()))
