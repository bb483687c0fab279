"""HTTP that means two things to two readers, and addresses that are not what they seem."""

import json

import pytest

from crafely.api import ROUTES
from tests.attack.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = b'{"name":"smuggled","instructions":""}'
INNER = b"DELETE /v1/agents/%s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: 0\r\n\r\n"
# Framing that a proxy and a server might read in different ways: all of it ends the connection, unread.
FRAMING: dict[str, bytes] = {
    "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
    "TE twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "TE and identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "TE, chunked not last": b"Transfer-Encoding: chunked, identity\r\n",
    "TE unknown": b"Transfer-Encoding: xchunked\r\n",
    "TE with a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "TE folded": b"Transfer-Encoding:\r\n chunked\r\n",
    "TE with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "TE with a nul": b"Transfer-Encoding: chunked\0\r\n",
    "TE behind a bare line feed": b"X: y\nTransfer-Encoding: chunked\r\n",
    "TE behind a bare carriage return": b"X: y\rTransfer-Encoding: chunked\r\n",
    "CL twice, alike": b"Content-Length: 6\r\nContent-Length: 6\r\n",
    "CL twice, different": b"Content-Length: 6\r\nContent-Length: 7\r\n",
    "CL in a list": b"Content-Length: 6, 6\r\n",
    "CL with a sign": b"Content-Length: +6\r\n",
    "CL below zero": b"Content-Length: -6\r\n",
    "CL in hexadecimal": b"Content-Length: 0x6\r\n",
    "CL with an underscore": b"Content-Length: 1_0\r\n",
    "CL with a fraction": b"Content-Length: 6.0\r\n",
    "CL in Arabic digits": "Content-Length: ٦\r\n".encode(),
    "CL empty": b"Content-Length: \r\n",
    "CL with a space inside": b"Content-Length: 1 0\r\n",
    "CL beyond 64 bits": b"Content-Length: 99999999999999999999\r\n",
    "CL folded": b"Content-Length:\r\n 6\r\n",
}
# Chunks that are none.
CHUNKS: dict[str, bytes] = {
    "size with a sign": b"+6\r\n",
    "size below zero": b"-6\r\n",
    "size in 0x": b"0x6\r\n",
    "size with an underscore": b"1_0\r\n",
    "size empty": b"\r\n",
    "size beyond 64 bits": b"f" * 17 + b"\r\n",
    "size in other digits": "٦\r\n".encode(),
    "a bare line feed": b"6\nabcdef\n0\n\n",
    "an extension with a line feed": b"6;x\ny\r\nabcdef\r\n0\r\n\r\n",
    "data longer than the size": b"2\r\nabcdef\r\n0\r\n\r\n",
}
# Request lines and headers that are no HTTP.
LINES: dict[str, bytes] = {
    "a tab for a space": b"GET\t/v1/me\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "a space before the method": b" GET /v1/me HTTP/1.1\r\nHost: x\r\n\r\n",
    "a word too many": b"GET /v1/me x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a nul in the path": b"GET /v1/\0me HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bell in the path": b"GET /v1/\x07me HTTP/1.1\r\nHost: x\r\n\r\n",
    "a nul in the method": b"GE\0T /v1/me HTTP/1.1\r\nHost: x\r\n\r\n",
    "another protocol": b"GET /v1/me HTTPS/1.1\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /v1/me\r\n\r\n",
    "HTTP/2's beginning": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.10": b"GET /v1/me HTTP/1.10\r\nHost: x\r\n\r\n",
    "a header without a name": b"GET /v1/me HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "a header with a space in its name": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n",
    "a header with a space before its colon": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX-Api-Key : z\r\n\r\n",
    "a header with bytes in its name": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX\xff: z\r\n\r\n",
    "a nul in a header": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "a bare carriage return in a header": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: a\rY: b\r\n\r\n",
    "a folded header": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "a path of 17 KiB": b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header of 17 KiB": b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 17_000 + b"\r\n\r\n",
    "a name of 17 KiB": b"GET /v1/me HTTP/1.1\r\nHost: x\r\n" + b"x" * 17_000 + b": y\r\n\r\n",
    "ten thousand headers": b"GET /v1/me HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
}
# Ways to write an address of the API that a check before it might not know.
ADDRESSES: dict[bytes, int] = {
    b"/v1/agents/../api-keys": 404,
    b"/v1/agents/%2e%2e/api-keys": 404,
    b"/v1/agents/%2e%2e%2fapi-keys": 404,
    b"/v1/agents/..%2fapi-keys": 404,
    b"/v1/agents/..%252fapi-keys": 404,
    b"/v1/agents/..;/api-keys": 404,
    b"/v1/agents/..%5capi-keys": 404,
    b"/v1/agents/%c0%ae%c0%ae/api-keys": 404,
    b"/v1/./agents": 404,
    b"/v1//agents": 404,
    b"//v1/agents": 404,
    b"///v1/agents": 404,
    b"/v1/agents/": 404,
    b"/v1/agents.": 404,
    b"/v1/agents%20": 404,
    b"/v1/agents%00": 404,
    b"/v1/agents%0a": 404,
    b"/v1/agents%09": 404,
    b"/v1/agents;x=1": 404,
    b"/v1/agents.json": 404,
    b"/v1/Agents": 404,
    b"/V1/agents": 404,
    b"/v1%2fagents": 404,
    b"/v1\\agents": 404,
    "/v1/agents".replace("a", "\uff41").encode(): 400,
    b"/v1/%61gents": 200,
    b"/%76%31/agents": 200,
    b"http://other.example.com/v1/agents": 200,
    b"https://other.example.com:99/v1/agents": 200,
    b"ftp://other.example.com/v1/agents": 200,
    b"/openapi.json/../v1/agents": 404,
    b"/docs/../../v1/agents": 404,
    b"/healthz%2f..%2fv1/agents": 404,
    b"/healthz/v1/agents": 404,
}
PROTECTED = [route for route in ROUTES if route.permission is not None and "{" not in route.path]


async def test_requests_that_two_readers_would_cut_differently_are_not_read(world: World) -> None:
    """Neither is the one that hides in the body: a thing of the attacker's is there afterwards."""
    made = await world.mallory.post("/v1/agents", {"name": "x", "instructions": ""})
    key = world.mallory.token.encode()
    inner = INNER % (made["id"].encode(), key)
    head = b"POST /v1/agents HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: application/json\r\n" % key
    for framing in FRAMING.values():
        for body in (b"0\r\n\r\n", b"6\r\nabcdef\r\n0\r\n\r\n", b""):
            answers = await world.raw("request smuggling", head + framing + b"\r\n" + body + inner)
            assert [status for status, _, _ in answers] == [400], framing
            assert answers[0][1]["connection"] == "close"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    for chunk in CHUNKS.values():
        answers = await world.raw("request smuggling", chunked + chunk + inner)
        assert [status for status, _, _ in answers] == [400], chunk
    assert (await world.mallory.get(f"/v1/agents/{made['id']}")).body == made.body


async def test_a_body_of_get_is_no_request(world: World) -> None:
    """It is read to its announced end, and what stands in it is not served."""
    inner = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
        sent = b"%s /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (method, len(inner), inner)
        if method == b"HEAD":
            continue  # its answer has a length and no body, which split() does not know
        answers = await world.raw("request smuggling", sent + last)
        assert [status for status, _, _ in answers] == [404, 200]


@pytest.mark.parametrize("sent", LINES.values(), ids=LINES)
async def test_what_is_no_http_is_400_and_ends_the_connection(world: World, sent: bytes) -> None:
    follows = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = await world.raw("no HTTP", sent + follows)
    assert [status for status, _, _ in answers] in ([400], [])
    for _, headers, body in answers:
        assert headers["content-type"] == "application/problem+json"
        assert headers["connection"] == "close"
        assert json.loads(body)["code"] == "bad_request"


@pytest.mark.parametrize("address", ADDRESSES)
async def test_an_address_is_what_is_written(world: World, address: bytes) -> None:
    for credentials in (b"", b"X-API-Key: %s\r\n" % world.mallory.token.encode()):
        sent = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n" % (address, credentials)
        ((status, _, _),) = await world.raw("addresses", sent)
        wanted = ADDRESSES[address]
        # What leads to an operation asks for credentials first, whether or not such a thing is there.
        assert status == wanted or (not credentials and status == 401)
        assert credentials or status != 200


async def test_nobody_is_connected_to_anything(world: World) -> None:
    for target in (b"127.0.0.1:5432", b"/v1/agents", b"http://127.0.0.1:5432/"):
        for method in (b"CONNECT", b"TRACE", b"PROPFIND", b"DEBUG", b"x" * 30):
            sent = b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: secret-of-mine\r\n\r\n" % (
                method,
                target,
            )
            ((status, _, body),) = await world.raw("methods", sent)
            assert status in {400, 404, 405}
            assert b"secret-of-mine" not in body


@pytest.mark.parametrize(
    "host", [b"", b"evil.example.com", b"127.0.0.1:5432", b"x" * 300, b"a b", b"[::1", b"\xff", b"x@y"]
)
async def test_a_host_is_nobodys_word(world: World, host: bytes) -> None:
    """Nothing that is answered is made of it: addresses in answers begin with a slash."""
    body = BODY.replace(b"smuggled", b"host")
    head = b"POST /v1/agents HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: application/json\r\n" % host
    head += b"X-API-Key: %s\r\nX-Forwarded-Host: evil.example.com\r\n" % world.mallory.token.encode()
    ((status, headers, answer),) = await world.raw("hosts", head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    assert status in {201, 400}
    assert status == 400 or headers["location"].startswith("/v1/agents/agnt_")
    assert not host or host not in answer


@pytest.mark.parametrize("route", PROTECTED, ids=lambda route: f"{route.method} {route.path}")
async def test_no_way_to_write_an_address_goes_round_the_credentials(world: World, route: object) -> None:
    method, path = getattr(route, "method", "").encode(), getattr(route, "path", "").encode()
    first, rest = path[:4], path[4:]
    for written in (path, first + b"%%%02x" % rest[0] + rest[1:], b"http://x" + path, path + b"?", path + b"#x"):
        sent = b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % (method, written)
        ((status, _, _),) = await world.raw("round the credentials", sent)
        assert status == 401, written


REQUEST_IDS = [
    "x\r\nSet-Cookie: a=b",
    "../../etc/passwd",
    "${jndi:ldap://x/}",
    "crf_test_x",
    "<script>",
    "x" * 129,
    "\u00e9",
    "",
]


@pytest.mark.parametrize("text", REQUEST_IDS)
async def test_a_request_id_is_echoed_only_if_it_is_one(world: World, text: str) -> None:
    sent = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: %s\r\n\r\n" % text.encode()
    ((_, headers, _),) = await world.raw("request ids", sent)
    assert headers["x-request-id"] not in {text, "x"} or "\r\n" in text
    assert "set-cookie" not in headers
