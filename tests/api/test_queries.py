"""Query strings: what arrives, what is refused, and how."""

from collections.abc import AsyncIterator

import pytest

from tests.api.demo import AUTH, Client, problem, serving


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


@pytest.mark.parametrize(
    ("query", "parameter", "words"),
    [
        ("take=0", "take", "expected an integer of at least 1"),
        ("take=101", "take", "expected an integer of at most 100"),
        ("take=five", "take", "expected an integer; got a string of 4 characters"),
        ("take=", "take", "expected an integer"),
        ("take=5.0", "take", "expected an integer"),
        ("take=%D9%A3", "take", "expected an integer"),
        ("take=5&take=6", "take", "more than once"),
        ("skip=-1", "skip", "at least 0"),
        ("skip=10001", "skip", "at most 10000"),
        ("skip=" + "9" * 5000, "skip", "expected an integer"),
        ("cursor=abc", "cursor", "nextCursor"),
        ("cursor=%FF", "cursor", "nextCursor"),
        ("cursor=", "cursor", "nextCursor"),
        ("cursor=" + "A" * 513, "cursor", "at most 512 characters"),
        ("cursor=%00", "cursor", "cannot be stored"),
        ("cursor=AAAA&skip=1", "skip", "exclude each other"),
        ("active=1", "active", "expected true or false"),
        ("active=null", "active", "expected true or false"),
        ("since=1700000000", "since", "RFC 3339"),
        ("since=2025-01-31T12:00:00", "since", "RFC 3339"),
        ("groupBy=name,color", "groupBy", "expected one of name, size"),
        ("Take=5", "Take", "no such parameter; this operation takes take, cursor, skip, active"),
        ("%00=5", "\0", "no such parameter"),
    ],
)
async def test_a_bad_parameter_is_named(client: Client, query: str, parameter: str, words: str) -> None:
    reply = await client.get(f"/v1/things?{query}", headers=AUTH)
    document = await problem(reply)
    (error,) = document["errors"]
    assert (reply.status, error["parameter"]) == (422, parameter)
    assert words in error["detail"]


async def test_parameters_arrive_typed(client: Client) -> None:
    reply = await client.get(
        "/v1/things?take=7&active=false&groupBy=size,name&since=2025-01-01T00:00:00Z", headers=AUTH
    )
    assert (await reply.json())["data"][0]["id"] == "7 False ['size', 'name'] "
    reply = await client.get("/v1/things", headers=AUTH)
    assert (await reply.json())["data"][0]["id"] == "20 None None "
    assert await (await client.get("/v1/day?day=-3", headers=AUTH)).text() == "-3"


async def test_required_and_unwanted_parameters(client: Client) -> None:
    document = await problem(await client.get("/v1/day", headers=AUTH))
    assert document["errors"] == [{"detail": "required, but missing", "parameter": "day"}]
    document = await problem(await client.get("/v1/things/1?x=1", headers=AUTH))
    assert document["errors"][0]["parameter"] == "x"
