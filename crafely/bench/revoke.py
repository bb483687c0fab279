"""``crafely bench revoke``: how long after the commit that revokes a key the last worker has denied it.

Connections that stay open ask for one key again and again. Which worker serves a connection is read from the system
(``/proc``, Linux), so that a worker is known to have denied. A VALID that was asked for after the same worker had
denied is a violation, and fails the bench.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import uvloop
from psycopg.rows import TupleRow
from rich.progress import Progress

from crafely.bench import BenchError, load, servers, statement
from crafely.bench.place import Place, execute
from crafely.bench.report import Bound, Facts, Report, facts, results
from crafely.bench.rounds import Measured, Sample, Side
from crafely.bench.seed import KEYS_PER_USER, Seed, key_id, row_id, seed
from crafely.bench.servers import Address
from crafely.config import Settings
from crafely.db.session import connect

PATH = "/v1/api-keys/verify"
WORKERS = 2
# Connections for each worker, at least; the kernel deals them out as it likes.
CONNECTIONS = 8
MOST_CONNECTIONS = 256
# Seconds between an answer and the next question, on each connection: often enough to see a denial at once, seldom
# enough that what is measured is no queue.
PAUSE = 0.002
# Seconds after which a worker that still says VALID has not heard of it.
PATIENCE = 10.0
P99_MS = 50.0

Revoke = Callable[[int], Awaitable[float]]


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    revocations: int = 200
    rows: int = 10_000


class Poller(asyncio.Protocol):
    """A connection that asks for one key until it is denied, and then once more."""

    def __init__(self) -> None:
        self.worker = 0
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        size = load.answer_size(self._buffer)
        if size is None or len(self._buffer) < size or self._answer is None or self._answer.done():
            return
        answer, self._buffer = self._buffer[:size], self._buffer[size:]
        self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchError(f"a worker closed a connection: {error}"))

    async def ask(self, request: bytes) -> bytes:
        """Sends a request and gives the whole answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await asyncio.wait_for(self._answer, load.SILENCE)


class Denials:
    """When each worker first denied a key, and what came after."""

    def __init__(self) -> None:
        self.first: dict[int, float] = {}
        self.violations = 0

    def saw(self, worker: int, valid: bool, asked: float) -> None:
        """Notes an answer to a question asked at a time (seconds of perf_counter)."""
        denied = self.first.get(worker)
        if not valid and denied is None:
            self.first[worker] = time.perf_counter()
        elif valid and denied is not None and asked > denied:
            self.violations += 1


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Revokes keys one by one: in turn as a person would in psql, and over HTTP."""
    url = place.database("revoke")
    found = seed(url, settings, progress, keys=options.rows)
    with connect(url) as connection:
        execute(connection, "fast_seed")
        execute(connection, "restore_keys")
    circumstances = facts(url, {"api_keys": options.rows})
    # The first key of each user lives on, and revokes the others.
    numbers = [n for n in range(1, options.rows + 1) if n % KEYS_PER_USER != 1]
    if len(numbers) < 2 * options.revocations:
        raise BenchError(f"{options.rows} keys are too few for {options.revocations} revocations of either kind")
    times = uvloop.run(_measure(url, found, numbers, options.revocations, progress))
    return _report(circumstances, times, options)


async def _measure(
    url: str, found: Seed, numbers: list[int], revocations: int, progress: Progress
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"by SQL": [], "by DELETE": []}
    task = progress.add_task("revoking", total=2 * revocations)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(servers.crafely(url, workers=WORKERS))
        pollers = await _pollers(server)
        superuser = await psycopg.AsyncConnection.connect(url, autocommit=True)
        stack.push_async_callback(superuser.close)
        over_http = await _poller(server)
        ways = {"by SQL": _by_sql(superuser), "by DELETE": _by_delete(over_http, server, found)}
        for _ in range(revocations):
            for way, revoke in ways.items():
                times[way].append(await _one(pollers, server, found, numbers.pop(), revoke))
                progress.advance(task)
        for poller in [*pollers, over_http]:
            poller.transport.close()
    progress.remove_task(task)
    return times


def _report(circumstances: Facts, times: dict[str, list[float]], options: Options) -> Report:
    async def nothing(_: float) -> Sample:
        return Sample(0, 0, [])

    measured = [
        Measured(Side(name, nothing, "from the commit to the last worker's first denial", unit=""), [sample])
        for name, all_ in times.items()
        for sample in [Sample(len(all_), sum(all_), all_)]
    ]
    sides = results(measured)
    bounds = [Bound(f"{s.name}: p99, ms", "<", P99_MS, s.latency.p99) for s in sides if s.latency]
    notes = [f"{options.revocations} revocations each way, {WORKERS} workers, no VALID after a denial."]
    return Report(command="revoke", facts=circumstances, sides=sides, bounds=bounds, notes=notes)


async def _one(pollers: list[Poller], server: Address, found: Seed, number: int, revoke: Revoke) -> float:
    """Seconds from the commit to the moment at which every worker had denied the key. Raises BenchError."""
    token = found.token(number)
    asking = load.request("POST", PATH, server.host, found.token(1), msgspec.json.encode({"key": token}))
    for poller in pollers:
        answer = await poller.ask(asking)
        if b'"code":"VALID"' not in answer:
            raise BenchError(f"a key that is good is not found valid: {answer[: load.MAX_EXAMPLE]!r}")
    denials = Denials()
    workers = {poller.worker for poller in pollers}
    tasks = [asyncio.create_task(_poll(poller, asking, denials, workers)) for poller in pollers]
    committed = await revoke(number)
    try:
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    except TimeoutError:
        raise BenchError(f"{PATIENCE:g} s after its end a key is still valid to a worker") from None
    finally:
        for task in tasks:
            task.cancel()
    if denials.violations:
        raise BenchError(f"{denials.violations} answers were VALID although the same worker had denied the key before")
    # A worker may have heard of it before we did.
    return max(0.0, max(denials.first.values()) - committed)


async def _poll(poller: Poller, request: bytes, denials: Denials, workers: set[int]) -> None:
    """Asks until every worker has denied, and once more."""
    last = False
    while True:
        asked = time.perf_counter()
        answer = await poller.ask(request)
        denials.saw(poller.worker, b'"code":"VALID"' in answer, asked)
        if last:
            return
        last = denials.first.keys() == workers
        await asyncio.sleep(PAUSE)


def _by_sql(connection: psycopg.AsyncConnection[TupleRow]) -> Revoke:
    async def revoke(number: int) -> float:
        await psycopg.AsyncRawCursor(connection).execute(statement("revoke"), [key_id(number)])
        return time.perf_counter()

    return revoke


def _by_delete(poller: Poller, server: Address, found: Seed) -> Revoke:
    async def revoke(number: int) -> float:
        # By the first key of the same user.
        caller = (number - 1) // KEYS_PER_USER * KEYS_PER_USER + 1
        path = f"/v1/api-keys/{row_id(number)}"
        answer = await poller.ask(load.request("DELETE", path, server.host, found.token(caller)))
        if not answer.startswith(b"HTTP/1.1 2"):
            raise BenchError(f"a key cannot be revoked: {answer[: load.MAX_EXAMPLE]!r}")
        return time.perf_counter()

    return revoke


async def _poller(server: Address) -> Poller:
    _, poller = await asyncio.get_running_loop().create_connection(Poller, server.host, server.port)
    return poller


async def _pollers(server: Address) -> list[Poller]:
    """Connections until each worker has enough of them, of which its worker is known. Raises BenchError."""
    pollers: list[Poller] = []
    while len(pollers) < MOST_CONNECTIONS:
        pollers += [await _poller(server) for _ in range(CONNECTIONS)]
        # Accepted, not only made, once it has answered.
        probe = load.request("GET", "/healthz", server.host, "")
        for poller in pollers[-CONNECTIONS:]:
            await poller.ask(probe)
        for poller, worker in zip(pollers, await asyncio.to_thread(_workers, server, pollers), strict=True):
            poller.worker = worker
        counts = [sum(p.worker == worker for p in pollers) for worker in {p.worker for p in pollers}]
        if len(counts) >= WORKERS and min(counts) >= CONNECTIONS // 2:
            return pollers
    raise BenchError(f"{MOST_CONNECTIONS} connections did not reach {WORKERS} workers")


def _workers(server: Address, pollers: list[Poller]) -> list[int]:
    """The process at the other end of each connection: /proc/net/tcp leads from ports to a socket, /proc/*/fd to who
    holds it (proc(5))."""
    ours = {poller.transport.get_extra_info("sockname")[1]: number for number, poller in enumerate(pollers)}
    inodes: dict[str, int] = {}
    try:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except FileNotFoundError:
        raise BenchError(
            "the revoke bench runs on Linux: it reads from /proc which worker serves a connection"
        ) from None
    for line in lines:
        fields = line.split()
        local, remote = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        if local == server.port and remote in ours:
            inodes[f"socket:[{fields[9]}]"] = ours[remote]
    found = [0] * len(pollers)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:  # it has ended, or is somebody else's
            continue
        for link in links:
            if link in inodes:
                found[inodes[link]] = int(process.name)
    if 0 in found:
        raise BenchError("a connection belongs to no process that can be looked at")
    return found
