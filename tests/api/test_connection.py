"""HTTP as bytes on a socket: what clients of every age send, and what must come back."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from crafely.api.answer import Answer
from crafely.api.router import Router
from crafely.api.wire import Call
from tests.api.demo import Client, serving

GET = b"GET /text HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b'{"name":"a"}'
POST = (
    b"POST /v1/things HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer reader-writer\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(BODY)
)


@dataclass
class Reply:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Wire:
    """A connection on which a test writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self, *, body: bool = True) -> Reply:
        """The next answer."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").encode()
            status, *lines = head[:-4].split(b"\r\n")
            assert status.startswith(b"HTTP/1.1 ")
            headers = dict(line.split(b": ", 1) for line in lines)
            assert len(headers) == len(lines), "a header stands twice"
            length = int(headers.get(b"Content-Length", 0)) if body else 0
            return Reply(int(status.split()[1]), headers, await self.reader.readexactly(length))

    async def ended(self) -> bool:
        """Whether the server closes the connection without another word."""
        async with asyncio.timeout(10):
            return await self.reader.read(1) == b""

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connected(client: Client) -> AsyncIterator[Wire]:
    wire = Wire(*await asyncio.open_connection("127.0.0.1", client.port))
    try:
        yield wire
    finally:
        await wire.close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving(lingering_time=0.2) as client:
        yield client


@pytest.fixture
async def wire(client: Client) -> AsyncIterator[Wire]:
    async with connected(client) as wire:
        yield wire


async def test_an_answer_carries_what_it_must_and_no_more(wire: Wire) -> None:
    await wire.send(GET)
    reply = await wire.reply()
    assert (reply.status, reply.body) == (200, b"as it stands")
    assert reply.headers.pop(b"Date").endswith(b" GMT")
    assert len(reply.headers.pop(b"X-Request-Id")) == 32
    assert reply.headers == {
        b"X-Content-Type-Options": b"nosniff",
        b"Cache-Control": b"no-store",
        b"Referrer-Policy": b"no-referrer",
        b"Cross-Origin-Resource-Policy": b"same-origin",
        b"Content-Security-Policy": b"default-src 'none'; frame-ancestors 'none'",
        b"Server": b"crafely",
        b"Content-Type": b"text/plain",
        b"Content-Length": b"12",
    }


async def test_head_has_the_length_of_get_and_no_body(wire: Wire) -> None:
    await wire.send(GET.replace(b"GET", b"HEAD") + GET)
    assert (await wire.reply(body=False)).headers[b"Content-Length"] == b"12"
    # What follows is the next answer, not a body.
    assert (await wire.reply()).body == b"as it stands"


async def test_head_of_what_is_refused_has_no_body_either(wire: Wire) -> None:
    await wire.send(b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert (await wire.reply(body=False)).status == 404
    assert (await wire.reply()).status == 200


async def test_the_first_http_closes_and_keeps_alive_if_asked(client: Client) -> None:
    for header, kept in ((b"", False), (b"Connection: keep-alive\r\n", True)):
        async with connected(client) as wire:
            await wire.send(b"GET /text HTTP/1.0\r\n%s\r\n" % header)
            reply = await wire.reply()
            assert reply.body == b"as it stands"
            assert reply.headers[b"Connection"] == (b"keep-alive" if kept else b"close")
            if kept:
                await wire.send(GET)
                assert (await wire.reply()).status == 200
            else:
                assert await wire.ended()


@pytest.mark.parametrize("line", [b"GET /text", b"GET /text HTTP/0.9"])
async def test_what_was_before_the_first_http_is_refused(wire: Wire, line: bytes) -> None:
    await wire.send(line + b"\r\n\r\n")
    reply = await wire.reply()
    assert (reply.status, reply.headers[b"Connection"]) == (400, b"close")
    assert await wire.ended()


async def test_connection_close_is_heeded_and_said(wire: Wire) -> None:
    await wire.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert (await wire.reply()).headers[b"Connection"] == b"close"
    assert await wire.ended()


async def test_requests_in_one_packet_are_answered_in_their_order(wire: Wire) -> None:
    await wire.send(POST + b"\r\n" + BODY + GET + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    assert [(await wire.reply()).status for _ in range(4)] == [201, 200, 404, 200]


async def test_a_hundred_requests_in_one_packet(wire: Wire) -> None:
    await wire.send(GET * 100)
    assert {(await wire.reply()).status for _ in range(100)} == {200}


async def test_a_change_of_protocol_is_not_granted_and_nothing_is_lost(wire: Wire) -> None:
    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await wire.send(GET + upgrade + GET + upgrade + GET)
    assert [(await wire.reply()).status for _ in range(5)] == [200] * 5


async def test_a_request_may_come_byte_by_byte(wire: Wire) -> None:
    for byte in POST + b"\r\n" + BODY:
        await wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.reply()).status == 201


async def test_no_body_at_all_with_204() -> None:
    router = Router()

    async def nothing(_: Call) -> Answer:
        return Answer(204, None)

    router.add("DELETE", "/x", nothing)
    async with serving(router) as client, connected(client) as wire:
        await wire.send(b"DELETE /x HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        for _ in range(2):
            reply = await wire.reply()
            assert reply.status == 204
            assert not {b"Content-Length", b"Content-Type", b"Transfer-Encoding"} & set(reply.headers)


async def test_who_asks_whether_to_go_on_is_told_so_and_only_for_a_good_request(wire: Wire) -> None:
    await wire.send(POST + b"Expect: 100-continue\r\n\r\n")
    assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await wire.send(BODY)
    assert (await wire.reply()).status == 201


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"reader-writer", b"wrong", 401),
        (b"application/json", b"text/plain", 415),
        (b"Content-Length: 12", b"Content-Length: 5000", 413),
        (b"100-continue", b"something-else", 417),
    ],
)
async def test_a_body_that_would_not_help_is_not_asked_for(wire: Wire, old: bytes, new: bytes, status: int) -> None:
    await wire.send((POST + b"Expect: 100-continue\r\n\r\n").replace(old, new))
    reply = await wire.reply()
    assert (reply.status, json.loads(reply.body)["status"]) == (status, status)
    # What the client sends now might be the body or the next request; nobody guesses.
    assert reply.headers[b"Connection"] == b"close"
    assert await wire.ended()


async def test_an_expectation_is_refused_even_where_the_body_is_here(wire: Wire) -> None:
    await wire.send(POST + b"Expect: something-else\r\n\r\n" + BODY + GET)
    assert (await wire.reply()).status == 417
    assert (await wire.reply()).status == 200


async def test_a_chunked_body_in_pieces_and_one_that_is_too_large(wire: Wire) -> None:
    head = POST.replace(b"Content-Length: 12", b"Transfer-Encoding: chunked") + b"\r\n"
    await wire.send(head + b"3\r\n" + BODY[:3] + b"\r\n")
    await asyncio.sleep(0.02)
    await wire.send(b"9\r\n" + BODY[3:] + b"\r\n0\r\n\r\n")
    assert (await wire.reply()).status == 201
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    await wire.send(head + chunk + chunk + b"0\r\n\r\n" + GET)
    assert (await wire.reply()).status == 413
    assert (await wire.reply()).status == 200


async def test_a_compressed_body_is_refused_as_it_came(wire: Wire) -> None:
    # Not even looked at: this is no gzip.
    await wire.send(POST + b"Content-Encoding: gzip\r\n\r\n" + BODY + GET)
    assert (await wire.reply()).status == 415
    assert (await wire.reply()).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([b"Authorization: Bearer reader-writer"] * 2, 400),
        ([b"Authorization: Bearer reader-writer", b"Authorization: Bearer wrong"], 400),
        ([b"Authorization: Basic x", b"authorization: Bearer reader-writer"], 400),
        ([b"X-API-Key: reader-writer", b"x-api-key: wrong"], 400),
        ([b"X-API-Key: reader-writer", b"X-API-Key: wrong", b"Authorization: Bearer reader-writer"], 200),
        ([b"X-API-Key: wrong", b"Authorization: Bearer reader-writer"], 200),
    ],
)
async def test_credentials_stand_once(wire: Wire, headers: list[bytes], status: int) -> None:
    await wire.send(b"GET /v1/me HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % b"\r\n".join(headers))
    reply = await wire.reply()
    assert reply.status == status
    if status == 400:
        assert json.loads(reply.body)["code"] == "bad_request"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /text HTTP/9.9\r\n\r\n",
        b"GET /text HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        POST + b"Content-Length: 13\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /text HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_problem_after_which_nothing_is_read(wire: Wire, request_: bytes) -> None:
    await wire.send(GET)
    assert (await wire.reply()).status == 200
    await wire.send(request_ + GET)
    reply = await wire.reply()
    problem = json.loads(reply.body)
    assert (reply.status, problem["code"]) == (400, "bad_request")
    assert problem["requestId"].encode() == reply.headers[b"X-Request-Id"]
    assert reply.headers[b"Content-Type"] == b"application/problem+json"
    assert reply.headers[b"Connection"] == b"close"
    assert await wire.ended()


@pytest.mark.parametrize(
    "target", [b"*", b"http://x/text", b"/text#x", b"/text?", b"//text", b"/%74ext", b"/text/", b"/text?x=1", b"text"]
)
async def test_every_form_of_a_target(wire: Wire, target: bytes) -> None:
    await wire.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target)
    expected = {b"*": 400, b"//text": 404, b"/text/": 404, b"/text?x=1": 422, b"text": 400}
    assert (await wire.reply()).status == expected.get(target, 200)


async def test_a_client_that_does_not_read_is_not_written_to_without_end() -> None:
    served = 0

    async def large(_: Call) -> Answer:
        nonlocal served
        served += 1
        return Answer(200, b"x" * 1_000_000, "text/plain")

    router = Router()
    router.add("GET", "/large", large)
    async with serving(router) as client:
        sock = socket.create_connection(("127.0.0.1", client.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
        sock.setblocking(False)
        sock.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
        await asyncio.sleep(0.3)
        assert served < 15
        reader, writer = await asyncio.open_connection(sock=sock)
        wire = Wire(reader, writer)
        for _ in range(30):
            assert len((await wire.reply()).body) == 1_000_000
        assert served == 30
        await wire.close()


async def test_a_client_that_leaves_before_its_answer_harms_nobody() -> None:
    wait, ended = asyncio.Event(), asyncio.Event()

    async def waiting(_: Call) -> Answer:
        await wait.wait()
        ended.set()
        return Answer(200, b"x")

    router = Router()
    router.add("GET", "/waiting", waiting)
    async with serving(router) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write(b"GET /waiting HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
        await asyncio.sleep(0.05)
        wait.set()
        async with asyncio.timeout(5):
            await ended.wait()
        assert (await client.get("/waiting")).status == 200


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\0b"])
def test_a_header_holds_no_line_break(value: str) -> None:
    for headers in ({"Location": value}, {value: "x"}):
        with pytest.raises(ValueError, match="control character"):
            Answer(201, b"{}", headers=headers)
