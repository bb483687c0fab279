"""What happens between us and PostgreSQL, and between clients and us, on the way: delays, silence, ends."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import Serving, new_folder, until
from tests.faults.clients import DATABASE, RECOVERY_SECONDS, SETTINGS, Clients, clients
from tests.faults.proxy import Proxy
from tests.torture.scene import Scene

MOST = 20


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture(scope="module")
def scene(proxy: Proxy) -> Iterator[Scene]:
    """A server with one worker behind a network that may fail, and few connections for clients."""
    settings = {**SETTINGS, "CRAFELY_MAX_CONNECTIONS": str(MOST), "CRAFELY_REQUEST_TIMEOUT": "5"}
    with new_folder() as folder, ExitStack() as stack:
        scene = Scene(folder, stack, users=2, permissions=["*"], settings=settings, workers=1, between=proxy.between)
        yield scene
        scene.stop(RECOVERY_SECONDS)
        assert "a request failed unexpectedly" not in scene.serving.err


async def test_a_slow_network_is_only_slow(scene: Scene, proxy: Proxy) -> None:
    async with clients(scene) as them:
        proxy.delay = 0.05
        assert set((await them.statuses()).values()) == {200, 201}
        proxy.delay = 0.0


async def test_silence(scene: Scene, proxy: Proxy) -> None:
    async with clients(scene) as them:
        proxy.silent = True
        for _ in range(2):
            statuses = await them.statuses()
            assert {statuses[kind] for kind in DATABASE} == {503}
            assert (statuses["healthz"], statuses["readyz"]) == (200, 503)
        proxy.silent = False


# What each of them is in the middle of: a new connection's role, and the answers to statements.
@pytest.mark.parametrize(
    ("said", "kind"), [(b"model", "stats"), (b"createdAt", "agents"), (b"recorded", "usage"), (b"agnt_", "new agent")]
)
async def test_an_answer_that_is_cut_in_the_middle(scene: Scene, proxy: Proxy, said: bytes, kind: str) -> None:
    async with clients(scene) as them:
        struck = proxy.struck
        proxy.cut_at = {b"createdAt": b"agent", b"model": b"gpt-4o"}.get(said, said)
        answer = await them.ask(kind)
        proxy.cut_at = None
        assert proxy.struck == struck + 1
        assert answer.status == 503, answer.raw


def connection(serving: Serving) -> socket.socket:
    host, _, port = serving.address.rpartition("//")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def head(scene: Scene, method: str, path: str, length: int = 0) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {scene.keys[0]}"]
    if length:
        lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def test_clients_that_leave_amid_their_body_or_their_answer(scene: Scene) -> None:
    async with clients(scene):
        for data in (head(scene, "POST", "/v1/usage", 5000) + b'{"model": "x"', head(scene, "GET", "/v1/agents") * 50):
            for _ in range(MOST):
                with connection(scene.serving) as sock:
                    sock.sendall(data)
        # For a moment all connections are taken by what nobody waits for any more.


async def test_slow_loris_keeps_nobody_out(scene: Scene) -> None:
    """Twice as many connections as there may be, on each a head that never ends; everybody else is served."""
    stop = asyncio.Event()

    async def drip() -> bytes:
        host, _, port = scene.serving.address.rpartition("//")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/agents HTTP/1.1\r\n")
        with suppress(ConnectionError):
            while not stop.is_set() and not reader.at_eof():
                writer.write(b"X: y\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)
        said = b""
        with suppress(ConnectionError):
            writer.close()
            said = await reader.read()
        return said

    async with clients(scene) as them:
        slow = [asyncio.create_task(drip()) for _ in range(2 * MOST)]
        # For a second each of them might still be a client like any other.
        await them.recovered()
        for _ in range(5):
            assert set((await them.statuses("agents", "new agent", "usage", "verify")).values()) == {200, 201}
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*slow)


async def test_clients_that_never_read_are_given_up(scene: Scene) -> None:
    """Each would keep its answers in our memory for ever."""
    with ExitStack() as stack:
        for _ in range(5):
            sock = stack.enter_context(connection(scene.serving))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            flood = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 500
            with suppress(BlockingIOError):
                sock.send(flood)
        async with clients(scene) as them:
            assert set((await them.statuses()).values()) == {200, 201}
            await asyncio.to_thread(until, lambda: established(scene.serving) == 0, "all to be cut")


def established(serving: Serving) -> int:
    """Connections of clients that the server has at this moment: its sockets on its own port."""
    port = f"{int(serving.address.rpartition(':')[2]):04X}"
    sockets = set()
    for one in Path(f"/proc/{serving.process.pid}/fd").iterdir():
        with suppress(OSError):
            sockets.add(one.readlink().name)
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        parts = line.split()
        mine = parts[1].endswith(f":{port}") and f"socket:[{parts[9]}]" in sockets
        # 0A: it listens.
        count += mine and parts[3] != "0A"
    return count


async def test_everything_at_once_through_a_bad_network(scene: Scene, proxy: Proxy) -> None:
    """A slow network that falls silent now and then: every answer is one that is described."""
    async with clients(scene) as them:
        work = asyncio.create_task(rounds(them, 8))
        while not work.done():
            proxy.delay = 0.005
            await asyncio.sleep(0.3)
            proxy.silent = True
            await asyncio.sleep(0.2)
            proxy.silent = False
        proxy.delay = 0.0
        await work


async def rounds(them: Clients, count: int) -> None:
    for _ in range(count):
        await them.round()
