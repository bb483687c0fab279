"""Clients that take more than their share: of time, of connections, of memory. Nobody else notices them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from crafely.api import connection
from crafely.api.answer import Answer
from crafely.api.router import Router
from crafely.api.wire import Call
from tests.api.demo import Client, serving
from tests.api.test_connection import GET, POST, Wire, connected
from tests.db.statements import until

LARGE = 8_000_000
# Longer than anything here should take.
SECONDS = 20


class Handlers:
    """Two more addresses: one that answers when it is told to, and one that says very much."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = 0
        self.router = Router()
        self.router.add("GET", "/text", self.text)
        self.router.add("GET", "/wait", self.wait)
        self.router.add("GET", "/large", self.large)
        self.router.add("POST", "/read", self.read)

    async def text(self, _: Call) -> Answer:
        return Answer(200, b"x")

    async def wait(self, _: Call) -> Answer:
        self.waiting += 1
        await self.go_on.wait()
        return Answer(200, b"waited")

    async def large(self, _: Call) -> Answer:
        return Answer(200, b"x" * LARGE, "text/plain")

    async def read(self, call: Call) -> Answer:
        return Answer(200, await call.request.read())


@asynccontextmanager
async def limited(seconds: float = 30, **limits: float) -> AsyncIterator[tuple[Handlers, Client]]:
    handlers = Handlers()
    async with serving(handlers.router, seconds, lingering_time=0.2, **limits) as client:
        yield handlers, client


async def said(wire: Wire) -> tuple[str, str]:
    """What the server says until it ends the connection, as head and body. The end is a reset where it had not read."""
    data = b""
    with suppress(ConnectionError):
        while more := await wire.reader.read(65_536):
            data += more
    head, _, body = data.decode().partition("\r\n\r\n")
    return head, body


async def drip(wire: Wire, data: bytes) -> tuple[str, str]:
    """Sends a byte at a time until the server has had enough, and gives what it says."""
    answer = asyncio.create_task(said(wire))
    async with asyncio.timeout(SECONDS):
        for byte in data * 10_000:
            if answer.done():
                break
            try:
                await wire.send(bytes([byte]))
            except ConnectionError:
                break
            await asyncio.sleep(0.02)
        return await answer


async def test_a_head_that_does_not_end_is_408_and_the_end_of_its_connection() -> None:
    async with limited(patience=0.3) as (_, client), connected(client) as wire:
        await wire.send(GET)
        assert (await wire.reply()).status == 200
        await wire.send(GET[:-2])
        # Others are served meanwhile.
        answered, (head, body) = await asyncio.gather(client.get("/text"), drip(wire, b"X: y\r\n"))
        assert answered.status == 200
        assert head.startswith("HTTP/1.1 408 ")
        assert "Connection: close" in head
        assert '"code":"request_timeout"' in body


async def test_half_a_head_and_then_nothing_is_no_better() -> None:
    async with limited(patience=0.3) as (_, client), connected(client) as wire:
        await wire.send(b"GET /te")
        assert (await wire.reply()).status == 408
        assert await wire.ended()


async def test_who_says_nothing_is_no_slow_client_and_many_heads_have_their_time_each() -> None:
    async with limited(patience=0.4) as (_, client), connected(client) as wire:
        await asyncio.sleep(0.6)
        for _ in range(4):
            await wire.send(GET[:10])
            await asyncio.sleep(0.15)
            await wire.send(GET[10:])
            assert (await wire.reply()).status == 200


async def test_a_body_that_does_not_end_is_408_and_the_end_of_its_connection() -> None:
    async with limited(seconds=0.3) as (_, client), connected(client) as wire:
        await wire.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n")
        head, body = await drip(wire, b"x")
        assert head.startswith("HTTP/1.1 408 ")
        assert "Connection: close" in head
        assert '"code":"request_timeout"' in body


async def test_a_handler_that_takes_too_long_is_still_503() -> None:
    async with limited(seconds=0.2) as (_, client), connected(client) as wire:
        await wire.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.reply()).status == 503
        await wire.send(GET)
        assert (await wire.reply()).status == 200


def quiet(client: Client) -> socket.socket:
    """A connection whose client has a small buffer, and does not read."""
    sock = socket.create_connection(("127.0.0.1", client.port or 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    return sock


def cut(sock: socket.socket) -> bool:
    """Reads what has been sent. Whether the server has cut the connection before all of it was."""
    sock.settimeout(SECONDS)
    received = 0
    try:
        while data := sock.recv(1_000_000):
            received += len(data)
    except ConnectionResetError:
        return True
    return received < LARGE


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"])
async def test_an_answer_that_nobody_reads_is_not_kept_for_ever(header: bytes) -> None:
    async with limited(patience=0.3) as (_, client):
        with quiet(client) as sock:
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n%s\r\n" % header)
            await until(lambda: connections(client) == 1)
            await until(lambda: connections(client) == 0)
            assert await asyncio.to_thread(cut, sock)


def connections(client: Client) -> int:
    return len(client.server.runner.server.connections)  # type: ignore[union-attr]  # it has been set up


async def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOWEST", 1)
    async with limited(patience=0.2) as (_, client):
        with quiet(client) as sock:
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

            def slowly() -> int:
                sock.settimeout(SECONDS)
                received = 0
                while data := sock.recv(400_000):
                    received += len(data)
                    time.sleep(0.02)
                return received

            assert await asyncio.to_thread(slowly) > LARGE


async def test_the_connection_that_is_idle_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "YOUNG", 0)
    async with limited(max_connections=3) as (_, client), AsyncExitStack() as stack:
        first, second, third = [await stack.enter_async_context(connected(client)) for _ in range(3)]
        # The oldest of them is not the one that has been idle for longest; what is half here is idle, too.
        await second.send(GET)
        assert (await second.reply()).status == 200
        await third.send(GET[:-2])
        await first.send(GET)
        assert (await first.reply()).status == 200
        fourth = await stack.enter_async_context(connected(client))
        assert await third.ended()
        for wire in (first, second, fourth):
            await wire.send(GET)
            assert (await wire.reply()).status == 200


async def test_who_has_just_come_is_given_time_to_say_what_he_wants() -> None:
    async with limited(max_connections=1) as (_, client), connected(client) as first:
        async with connected(client) as second:
            await second.send(GET)
            assert (await second.reply()).status == 503
        await first.send(GET)
        assert (await first.reply()).status == 200


async def test_where_all_are_busy_the_next_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "TOLD", 1)
    monkeypatch.setattr(connection, "YOUNG", 0)
    async with limited(max_connections=2) as (handlers, client), AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(connected(client)) for _ in range(2)]
        for number, wire in enumerate((first, second), 1):
            await wire.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda number=number: handlers.waiting == number)  # type: ignore[misc]  # mypy knows no default
        third = await stack.enter_async_context(connected(client))
        fourth = await stack.enter_async_context(connected(client))
        assert await fourth.ended()
        await third.send(POST + b"\r\n")
        reply = await third.reply()
        assert (reply.status, reply.headers[b"Retry-After"], reply.headers[b"Connection"]) == (503, b"1", b"close")
        assert await third.ended()
        handlers.go_on.set()
        assert (await first.reply()).body == (await second.reply()).body == b"waited"
        fifth = await stack.enter_async_context(connected(client))
        await fifth.send(GET)
        assert (await fifth.reply()).status == 200


async def test_others_have_their_turn_between_requests_that_came_at_once() -> None:
    """Not when all of them are answered: the first to come would have the worker for itself."""
    turns: list[str] = []

    def turn(whose: str) -> Callable[[Call], Awaitable[Answer]]:
        async def serve(_: Call) -> Answer:
            turns.append(whose)
            return Answer(200, b"x")

        return serve

    router = Router()
    router.add("GET", "/many", turn("many"))
    router.add("GET", "/other", turn("other"))
    async with serving(router) as client, connected(client) as many, connected(client) as other:
        for wire in (many, other):
            await wire.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
            await wire.reply()
        await many.send(b"GET /many HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        await other.send(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
        for wire in (*[many] * 200, other):
            assert (await wire.reply()).status == 200
    assert turns.index("other") < 100


async def test_a_flood_of_requests_is_answered_as_it_is_read_and_delays_nobody() -> None:
    async with limited() as (_, client), connected(client) as wire:
        flood = asyncio.create_task(wire.send(GET * 2_000))
        for _ in range(10):
            async with asyncio.timeout(SECONDS):
                assert (await client.get("/text")).status == 200
        for _ in range(2_000):
            assert (await wire.reply()).status == 200
        await flood
