"""Requests over real sockets to a small route table: what arrives, what is refused, and how."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crafely.api.wire import Call, Route, bind
from tests.api.demo import AUTH, Client, Services, get, problem, serving, text, who


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


async def test_create_answers_201_with_location(client: Client) -> None:
    body = '{"name":"é","price":"0.10","freeForm": {"b" : [1,  2]},"at":"2025-01-31T12:00:00+01:00"}'
    headers = {**AUTH, "Content-Type": "application/json; charset=UTF-8"}
    reply = await client.post("/v1/things", data=body.encode(), headers=headers)
    assert (reply.status, reply.headers["Location"]) == (201, "/v1/things/1")
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    # Free-form JSON keeps its bytes, decimals their digits, times end in Z.
    expected = b'{"id":"1","createdAt":"2025-01-31T12:00:00Z","price":"0.10","freeForm":{"b" : [1,  2]}}'
    assert await reply.read() == expected


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        (b"{}", "/name", "required, but missing"),
        (b"[]", "", "expected an object; got an array of 0 items"),
        (b"null", "", "expected an object; got null"),
        (b'"text"', "", "expected an object; got a string of 4 characters"),
        (b'{"name":7}', "/name", "expected a string; got an integer of 1 digit"),
        (b'{"name":""}', "/name", "expected a string of at least 1 characters; got a string of 0 characters"),
        (b'{"name":"%s"}' % (b"x" * 11), "/name", "at most 10 characters; got a string of 11 characters"),
        (b'{"name":"a","nmae":1}', "/nmae", "unknown field; the fields here are name, parts"),
        (b'{"name":"a","a/b~c":1}', "/a~1b~0c", "unknown field"),
        (b'{"name":"a","' + b"x" * 200 + b'":1}', "/" + "x" * 64, "unknown field"),
        (b'{"name":"a","parts":[{"size":1},{"size":101}]}', "/parts/1/size", "of at most 100; got an integer of 3"),
        (b'{"name":"a","parts":[{"size":-1}]}', "/parts/0/size", "at least 0; got an integer of 1 digit below zero"),
        (b'{"name":"a","parts":[{"size":1.5}]}', "/parts/0/size", "got a number with a fraction"),
        (b'{"name":"a","parts":[{"size":1,"x":2}]}', "/parts/0/x", "unknown field; the fields here are size"),
        (b'{"name":"a","parts":[{}]}', "/parts/0/size", "required, but missing"),
        (b'{"name":"a","parts":{}}', "/parts", "expected an array; got an object with 0 members"),
        (b'{"name":"a","parts":[%s{"size":1}]}' % (b'{"size":1},' * 3), "/parts", "at most 3 items; got an array of 4"),
        (b'{"name":"a","parts":null}', "/parts", "expected an array; got null"),
        (b'{"name":"a","color":"mauve"}', "/color", "expected one of blue, red; got a string of 5 characters"),
        (b'{"name":"a","at":"2025-01-31"}', "/at", "expected an RFC 3339 time with its offset"),
        (b'{"name":"a","at":"2025-01-31T12:00:00"}', "/at", "expected an RFC 3339 time with its offset"),
        (b'{"name":"a","at":"2025-02-30T12:00:00Z"}', "/at", "expected an RFC 3339 time with its offset"),
        (b'{"name":"a","at":1700000000}', "/at", "expected an RFC 3339 time with its offset"),
        (b'{"name":"a","price":"ten"}', "/price", "expected a decimal number, such as 0.000125"),
        (b'{"name":"a","happy":"true"}', "/happy", "expected true or false; got a string of 4 characters"),
        (b'{"name":"a","name":"b"}', "/name", "stands twice"),
        (b'{"name":"a","freeForm":{"x":[{"y":1,"y":2}]}}', "/freeForm/x/0/y", "stands twice"),
        (b'{"name":"a\\u0000"}', "/name", "U+0000"),
        (b'{"name":"a","freeForm":{"x":{"\\u0000":1}}}', "/freeForm/x", "U+0000"),
        (b'{"name":"\\ud800"}', "/name", "half of a surrogate pair"),
        (b'{"name":"a","freeForm":{"x":"\\udc00"}}', "/freeForm/x", "half of a surrogate pair"),
        (b'{"name":"a","freeForm":{"\\ud800":1,"\\ud800":2}}', "/freeForm/?", "stands twice"),
        (b'{"name":"a","freeForm":[]}', "/freeForm", "expected an object; got an array of 0 items"),
        (b'{"name":"a","freeForm":"x"}', "/freeForm", "expected an object; got a string of 1 character"),
        (b'{"name":"a","listForm":{}}', "/listForm", "expected an array; got an object with 0 members"),
        (b'{"name":"a","freeForm":{"x":"%s"}}' % (b"x" * 500), "/freeForm", "at most 500 bytes; got 508 bytes"),
        (b'{"name":"a","freeForm":{"x":1e400}}', "/freeForm/x", "between -1e300 and 1e300"),
        (b'{"name":"a","freeForm":{"x":[1e-9999]}}', "/freeForm/x/0", "between -1e300 and 1e300"),
        (b'{"name":"a","listForm":[%s]}' % (b"9" * 350), "/listForm/0", "at most 300 digits"),
        (b'{"name":"a","listForm":%s%s}' % (b"[" * 33, b"]" * 33), "/listForm" + "/0" * 32, "at most 32 levels"),
        (b'{"name":"a","listForm":%s%s}' % (b"[" * 1500, b"]" * 1500), "", "fewer levels"),
    ],
)  # fmt: skip
async def test_a_bad_value_is_pointed_at_and_never_repeated(
    client: Client, body: bytes, pointer: str, words: str
) -> None:
    reply = await client.post("/v1/things", data=body, headers={**AUTH, "Content-Type": "application/json"})
    document = await problem(reply)
    assert (reply.status, document["code"]) == (422, "invalid")
    (error,) = document["errors"]
    assert error["pointer"][:70] == pointer[:70]
    assert words in error["detail"]
    assert "mauve" not in str(document)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_body"),
        (b"  \n", "missing_body"),
        (b"{", "malformed_json"),
        (b'{"name":"a",}', "malformed_json"),
        (b'{"name":"a"} {}', "malformed_json"),
        (b"{'name':'a'}", "malformed_json"),
        (b'{"name":NaN}', "malformed_json"),
        (b'{"name":"\xff"}', "malformed_json"),
        (b'{"name":"a","freeForm":{"x":"\xff"}}', "malformed_json"),
        (b'{"name":"a","freeForm":{"x":01}}', "malformed_json"),
        (b'\xef\xbb\xbf{"name":"a"}', "malformed_json"),
        (b'{"name":"a\nb"}', "malformed_json"),
    ],
)
async def test_a_body_that_is_not_json_is_400(client: Client, body: bytes, code: str) -> None:
    reply = await client.post("/v1/things", data=body, headers={**AUTH, "Content-Type": "application/json"})
    document = await problem(reply)
    assert (reply.status, document["code"]) == (400, code)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "x-snappy"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 201),
    ],
)
async def test_media_types(client: Client, headers: dict[str, str], status: int) -> None:
    reply = await client.post("/v1/things", data=b'{"name":"a"}', headers={**AUTH, **headers})
    assert reply.status == status
    if status >= 400:
        assert (await problem(reply))["code"] == "unsupported_media_type"


async def test_a_body_over_the_limit_is_413_announced_or_not(client: Client) -> None:
    headers = {**AUTH, "Content-Type": "application/json"}

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1000

    for data in (b" " * 5000, chunks()):
        reply = await client.post("/v1/things", data=data, headers=headers)
        assert (await problem(reply))["code"] == "too_large"


async def test_one_or_many(client: Client) -> None:
    for body, answer in ((b'{"size":1}', b"1"), (b'[{"size":1},{"size":2}]', b"2")):
        reply = await client.post("/v1/parts", data=body, headers={**AUTH, "Content-Type": "application/json"})
        assert await reply.read() == answer
    reply = await client.post(
        "/v1/parts", data=b'[{"size":1},{"size":"x"}]', headers=AUTH | {"Content-Type": "application/json"}
    )
    assert (await problem(reply))["errors"][0]["pointer"] == "/1/size"


@pytest.mark.parametrize("id_", ["x" * 256, "%00", "a%0Ab", "a%7Fb"])
async def test_path_parameters_are_bounded(client: Client, id_: str) -> None:
    document = await problem(await client.get(f"/v1/things/{id_}", headers=AUTH))
    assert (document["status"], document["errors"][0]["parameter"]) == (422, "id")


async def test_path_parameters_are_unquoted(client: Client) -> None:
    assert (await (await client.get("/v1/things/a%20%C3%A9", headers=AUTH)).json())["id"] == "a é"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "unauthenticated"),
        ({"Authorization": "Basic YTpi"}, "unauthenticated"),
        ({"Authorization": "Bearer"}, "unauthenticated"),
        ({"Authorization": "Bearer  "}, "unauthenticated"),
        ({"X-API-Key": ""}, "unauthenticated"),
        ({"Authorization": "Bearer wrong", "X-API-Key": "reader-writer"}, "invalid_token"),
        ({"X-API-Key": "wrong"}, "invalid_token"),
    ],
)
async def test_without_good_credentials_401(client: Client, headers: dict[str, str], code: str) -> None:
    # Whoever is not known learns nothing of what else is wrong.
    reply = await client.get("/v1/things?take=0", headers=headers)
    assert (reply.status, (await problem(reply))["code"]) == (401, code)
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")


async def test_permissions(client: Client) -> None:
    assert (await client.get("/v1/things", headers={"X-API-Key": "reader-writer"})).status == 200
    assert (await client.get("/v1/things", headers={"Authorization": "bearer reader-writer"})).status == 200
    reply = await client.delete("/v1/things/1", headers=AUTH)
    document = await problem(reply)
    assert (reply.status, document["code"]) == (403, "insufficient_permissions")
    assert "things:delete" in document["detail"]
    assert await (await client.get("/v1/me", headers={"X-API-Key": "nobody"})).json() == "user_2"
    assert (await client.get("/v1/me")).status == 401


async def test_public_text(client: Client) -> None:
    reply = await client.get("/text")
    assert (reply.headers["Content-Type"], await reply.text()) == ("text/plain", "as it stands")


async def test_head_is_get_without_its_body(client: Client) -> None:
    reply = await client.head("/v1/things/1", headers=AUTH)
    assert (reply.status, await reply.read()) == (200, b"")
    assert int(reply.headers["Content-Length"]) > 0


async def test_unknown_address_and_method_are_problems(client: Client) -> None:
    assert (await problem(await client.get("/nowhere")))["code"] == "not_found"
    reply = await client.put("/v1/things")
    assert (await problem(reply))["code"] == "method_not_allowed"
    assert reply.headers["Allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v1/things HTTP/9.9\r\n\r\n",
        b"GET /v1/things HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
        b"POST /v1/things HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_400_and_the_server_lives_on(client: Client, request_: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(request_)
    status = await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert status.split()[1] == b"400"
    assert (await client.get("/text")).status == 200


async def undocumented(call: Call) -> int:
    return 1


async def unannotated(call: Call, id) -> int:  # type: ignore[no-untyped-def]  # the fault under test
    """Is not annotated."""
    return 1


async def other_names(call: Call, name: str) -> int:
    """Has another parameter than its path."""
    return 1


@pytest.mark.parametrize(
    ("handler", "path", "words"),
    [
        (undocumented, "/x", "no documentation, no route"),
        (unannotated, "/x/{id}", "no annotation for id"),
        (other_names, "/x/{id}", "expected the parameters call, id: str"),
        (get, "/x", "expected the parameters call"),
        (text, "/{id}", "expected the parameters call, id: str"),
    ],
)
def test_a_route_that_does_not_fit_its_handler_is_refused_at_start(handler: Any, path: str, words: str) -> None:
    with pytest.raises(TypeError, match=words) as caught:
        bind(Route("GET", path, handler, None), Services())
    assert handler.__name__ in str(caught.value)
    assert f"GET {path}" in str(caught.value)


def test_only_bytes_have_another_media_type() -> None:
    with pytest.raises(TypeError, match="an answer that is text/html is bytes"):
        bind(Route("GET", "/", who, None, media_type="text/html"), Services())
