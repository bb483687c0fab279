"""A small route table and its handlers, to try the machinery without a database."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestClient
from msgspec import UNSET, Meta, UnsetType

from crafely.api.connection import Runner
from crafely.api.dispatch import Dispatch
from crafely.api.router import Router
from crafely.api.wire import (
    AUTHENTICATED,
    Body,
    Call,
    Caller,
    FreeArray,
    FreeObject,
    ListQuery,
    Page,
    Problem,
    Query,
    Route,
    Timestamp,
    free_json,
    mount,
    position,
)

Client = TestClient[web.BaseRequest, None]
Text = Annotated[str, Meta(min_length=1, max_length=10)]
NOW = datetime(2025, 1, 31, 12, 0, tzinfo=UTC)
AUTH = {"Authorization": "Bearer reader-writer"}
NOBODY = Caller(user_id="user_2", permissions=frozenset(), session_id="sess_1")


class Part(Body, kw_only=True, frozen=True):
    size: Annotated[int, Meta(ge=0, le=100)]


class NewThing(Body, kw_only=True, frozen=True):
    name: Text
    parts: Annotated[list[Part], Meta(max_length=3)] = msgspec.field(default_factory=list)
    color: Literal["red", "blue"] = "red"
    at: Timestamp | None = None
    price: Decimal | None = None
    happy: bool = True
    free_form: FreeObject | UnsetType = UNSET
    list_form: FreeArray | UnsetType = UNSET


class Thing(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    created_at: datetime
    price: Decimal | None = None
    free_form: msgspec.Raw | None = None


class ListThings(ListQuery, kw_only=True, frozen=True):
    active: bool | None = None
    since: Timestamp | None = None
    group_by: list[Literal["name", "size"]] | None = None


class NeedsDay(Query, kw_only=True, frozen=True):
    day: int


async def create(call: Call, body: NewThing) -> Thing:
    """Create a thing."""
    free = free_json(body.free_form, "/freeForm", kind=dict, max_bytes=500)
    free_json(body.list_form, "/listForm", kind=list)
    call.headers["Location"] = "/v1/things/1"
    return Thing("1", NOW, body.price, free)


async def list_(call: Call, query: ListThings) -> Page[Thing]:
    """List things."""
    before, id_ = position(query)
    return Page(data=[Thing(f"{query.take} {query.active} {query.group_by} {id_}", before)])


async def get(call: Call, id: str) -> Thing:
    """Read a thing."""
    return Thing(id, NOW)


async def delete(call: Call, id: str) -> None:
    """Delete a thing."""


async def day(call: Call, query: NeedsDay) -> int:
    """Give the day back."""
    return query.day


async def many(call: Call, body: Annotated[list[Part], Meta(max_length=2)] | Part) -> int:
    """Count parts."""
    return len(body) if isinstance(body, list) else 1


async def text(call: Call) -> bytes:
    """Give text."""
    return b"as it stands"


async def who(call: Call) -> str:
    """Say who calls."""
    return call.caller.user_id


ROUTES = [
    Route("POST", "/v1/things", create, "things:write", 201),
    Route("GET", "/v1/things", list_, "things:read"),
    Route("GET", "/v1/things/{id}", get, "things:read"),
    Route("DELETE", "/v1/things/{id}", delete, "things:delete"),
    Route("GET", "/v1/day", day, "things:read"),
    Route("POST", "/v1/parts", many, "things:write"),
    Route("GET", "/text", text, None, media_type="text/plain"),
    Route("GET", "/v1/me", who, AUTHENTICATED),
]


class Services:
    def known(self, token: str) -> Caller | None:
        return NOBODY if token == "nobody" else None

    async def authenticate(self, token: str, request: web.BaseRequest) -> Caller:  # noqa: ARG002 - as the API has it
        if token != "reader-writer":
            raise Problem("invalid_token")
        return Caller(user_id="user_1", permissions=frozenset({"things:read", "things:write"}), api_key_id="key_1")

    async def admit(self, caller: Caller) -> bytes:  # noqa: ARG002 - as the API has it
        return b""


class _Served(BaseTestServer):
    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._own = runner

    async def _make_runner(self, **_: Any) -> Runner:
        return self._own


async def _nothing_to_open(_: web.Application) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def serving(router: Router | None = None, seconds: float = 30, **limits: Any) -> AsyncIterator[Client]:
    """A client of the table or of another router, served on a socket of its own. Bodies may have 4096 bytes."""
    services = Services()
    dispatch = Dispatch(router or mount(ROUTES, services), services, seconds)
    limits = {"max_connections": 1000, "patience": 30, **limits}
    runner = Runner(dispatch, _nothing_to_open, max_body=4096, shutdown_timeout=1, **limits)
    client: Client = TestClient(_Served(runner))
    async with client:
        yield client


async def problem(reply: Any) -> dict[str, Any]:
    """The problem document of an answer, after a look at what every one of them must have."""
    assert reply.content_type == "application/problem+json"
    document: dict[str, Any] = json.loads(await reply.read())
    assert document["status"] == reply.status
    assert document["requestId"] == reply.headers["X-Request-Id"]
    assert document["type"] == f"/docs#problem-{document['code']}"
    assert document["title"]
    assert document["detail"]
    return document
