"""What a client can get wrong: each answers 4xx, names the place, and stores nothing."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.api.bad_input import (
    AGENT,
    AGENTS,
    BODIES,
    BROKEN,
    HEADERS,
    JSON,
    PACKAGE,
    PACKAGES,
    PATHS,
    QUERIES,
    RAW,
    TOKENS,
    encoded,
)
from tests.api.conftest import Answer, Api, Server

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Target:
    """An administrator, who may do everything, and one thing of each noun that can be changed."""

    def __init__(self, api: Api, own: dict[str, str]) -> None:
        self.api = api
        self.own = own

    async def refused(self, method: str, path: str, expect: int, **options: Any) -> Answer:
        """Sends the path as it is written, with the id of what exists for ``own``."""
        noun = path.split("/")[2] if path.endswith("/own") else ""
        url = f"{path.removesuffix('own')}{self.own[noun]}" if noun else path
        return await self.api.admin.request(method, url, expect=expect, **options)


@pytest_asyncio.fixture(loop_scope="module")
async def target(api: Api) -> AsyncIterator[Target]:
    """What is refused must leave no trace: afterwards every table holds what it held before."""
    agent = await api.admin.post(AGENTS, AGENT)
    package = await api.admin.post(PACKAGES, {**PACKAGE, "name": api.admin.user})
    me = await api.admin.get("/v1/me")
    own = {"agents": agent["id"], "packages": package["id"], "api-keys": me["apiKeyId"]}
    before = fingerprint(api.server)
    yield Target(api, own)
    assert fingerprint(api.server) == before


def fingerprint(server: Server) -> list[tuple[Any, ...]]:
    """Count and content of every table, but for the keys' last use, which a refused request may still touch.

    And but for what housekeeping notes meanwhile: sizes, and seals of the trail.
    """
    tables = server.sql(
        "select c.relname from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition and relname not like '%%yoyo%%' and relname not in ('monitor_samples', 'audit_seals')"
    )
    assert len(tables) >= 9
    rows = (
        "select '{0}', count(*), md5(string_agg((to_jsonb(t) - 'last_used_at')::text, '' order by t::text)) from {0} t"
    )
    return server.sql(" union all ".join(rows.format(name) for (name,) in tables))


@pytest.mark.parametrize(("route", "body", "place"), BODIES.values(), ids=BODIES)
async def test_a_bad_value_is_422_at_its_place(target: Target, route: str, body: Any, place: str) -> None:
    method, _, path = route.partition(" ")
    answer = await target.refused(method, path, 422, data=encoded(body), headers=JSON)
    assert answer["code"] == "invalid"
    assert answer.places == [place]


@pytest.mark.parametrize(("body", "status", "code", "place"), RAW.values(), ids=RAW)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
async def test_a_bad_body_is_refused_however_it_is_sent(
    target: Target, body: bytes, status: int, code: str, place: str | None, chunked: bool
) -> None:
    data = pieces(body) if chunked else io.BytesIO(body)
    answer = await target.refused("POST", AGENTS, status, data=data, headers=JSON)
    assert answer["code"] == code
    assert answer.places == ([] if place is None else [place])


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 60_000):
        yield body[start : start + 60_000]


@pytest.mark.parametrize(("headers", "body", "status"), HEADERS.values(), ids=HEADERS)
async def test_a_body_of_another_kind_is_refused(
    target: Target, headers: dict[str, str], body: bytes, status: int
) -> None:
    await target.refused("POST", AGENTS, status, data=body, headers=headers)


@pytest.mark.parametrize(("path", "parameter"), QUERIES.values(), ids=QUERIES)
async def test_a_bad_parameter_is_422_with_its_name(target: Target, path: str, parameter: str) -> None:
    answer = await target.refused("GET", path, 422)
    assert answer["code"] == "invalid"
    assert answer.places == [parameter]


@pytest.mark.parametrize(("method", "path", "status"), PATHS.values(), ids=PATHS)
async def test_a_path_or_method_that_leads_nowhere_is_said_so(
    target: Target, method: str, path: str, status: int
) -> None:
    answer = await target.refused(method, path, status)
    assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
async def test_a_bad_token_is_401(target: Target, token: str, header: str) -> None:
    value = f"Bearer {token}" if header == "Authorization" else token
    answer = await target.api.anonymous.request("POST", AGENTS, expect=401, json=AGENT, headers={header: value})
    assert answer["code"] == "invalid_token"
    assert token not in answer["detail"] or len(token) < 5


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Token x", "Bearer\tx"])
async def test_an_authorization_without_a_token_is_401(target: Target, value: str) -> None:
    answer = await target.api.anonymous.request("POST", AGENTS, expect=401, headers={"Authorization": value})
    assert answer["code"] == "unauthenticated"


async def test_a_value_is_never_repeated_in_the_answer(target: Target) -> None:
    secret = "hunter2" * 40
    for body in ({**AGENT, "name": secret}, {**AGENT, "tools": secret}, {**AGENT, "context": [secret]}):
        answer = await target.refused("POST", AGENTS, 422, json=body)
        assert b"hunter2" not in answer.raw
    answer = await target.refused("GET", f"{AGENTS}?take={secret}", 422)
    assert b"hunter2" not in answer.raw


async def test_a_body_where_none_belongs_is_ignored(target: Target) -> None:
    await target.api.admin.get(AGENTS, data=b"{not json", headers=JSON)
    await target.api.admin.get(AGENTS)


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
async def test_broken_http_is_400_or_an_end_and_the_server_goes_on(target: Target, sent: bytes) -> None:
    answer = await talk(target.api.server, sent)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Traceback" not in answer
    await target.api.anonymous.get("/healthz")


async def test_a_body_that_breaks_off_stores_nothing_and_the_server_goes_on(target: Target) -> None:
    head = f"POST /v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.api.admin.token}\r\n"
    body = json.dumps(AGENT)
    for length in (len(body) + 1, len(body) - 1):
        kind = f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        answer = await talk(target.api.server, (head + kind + body).encode())
        assert b" 201 " not in answer.partition(b"\r\n")[0]
    await target.api.anonymous.get("/healthz")


async def talk(server: Server, sent: bytes) -> bytes:
    """Sends bytes, says that no more will come, and gives what the server said until it closed."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*server.address)
        try:
            writer.write(sent)
            writer.write_eof()
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
