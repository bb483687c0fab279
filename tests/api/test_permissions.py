"""Who may call what: made from the route table, so that a new route is tested before anybody thinks of it."""

import re
from typing import Any

import pytest

from crafely.api import ROUTES
from crafely.api.wire import AUTHENTICATED, Route
from crafely.auth.permissions import MONITOR, NAMES
from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROTECTED = [route for route in ROUTES if route.permission is not None]
GUARDED = [route for route in PROTECTED if route.permission != AUTHENTICATED]
WITH_ID = [route for route in ROUTES if "{id}" in route.path]
PUBLIC = [route for route in ROUTES if route.permission is None]

# What makes one of each noun that has ids, and a change that it takes.
NEW: dict[str, dict[str, Any]] = {
    "api-keys": {"name": "one"},
    "agents": {"name": "one", "instructions": ""},
    "threads": {"name": "one"},
    "user-subscriptions": {"packageId": "pkg_of_the_test"},
}
CHANGES: dict[str, Any] = {"name": "another"}


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


def noun(route: Route) -> str:
    return route.path.split("/")[2]


def path(route: Route, id: str = "nothing") -> str:
    return route.path.replace("{id}", id)


def options(route: Route) -> dict[str, Any]:
    """What aiohttp's request takes for a route: a body that is JSON, even if it lacks all that is required."""
    if route.path.endswith("/rotate"):
        return {"json": {"overlapSeconds": 60}}
    return {"json": {}} if re.search(r"POST [^{]*$|PATCH", name(route)) else {}


@pytest.mark.parametrize("route", ROUTES, ids=name)
async def test_a_route_takes_the_permission_of_its_noun_and_verb(route: Route) -> None:
    if not route.path.startswith("/v1/"):
        assert route.permission is None
        return
    verb = "read" if route.method == "GET" else "write"
    exceptions = {
        "/v1/me": AUTHENTICATED,
        "/v1/api-keys/verify": "keys:verify",
        "/v1/usage/daily-by-user": "admin",
        **({"/v1/packages": "admin", "/v1/packages/{id}": "admin"} if verb == "write" else {}),
    }
    expected = f"{noun(route).removeprefix('api-')}:{verb}"
    assert route.permission == exceptions.get(route.path, expected)


@pytest.mark.parametrize("route", PROTECTED, ids=name)
async def test_without_credentials_or_with_bad_ones_it_is_401(api: Api, route: Route) -> None:
    for token in ("", "nonsense", "crf_test_0123456789abcdef_0123456789abcdef0123456789abcdef000000"):
        caller = api.server.with_token(token)
        refused = await caller.request(route.method, path(route), expect=401, **options(route))
        assert refused["code"] == ("invalid_token" if token else "unauthenticated")


@pytest.mark.parametrize("route", GUARDED, ids=name)
async def test_with_every_permission_but_its_own_it_is_403(api: Api, route: Route) -> None:
    others = sorted(NAMES - {route.permission, "*"}) if route.permission != "admin" else ["*"]
    if route.permission == MONITOR:
        # An administrator's: it is in admin, and not in what every user holds.
        others = ["*", *sorted(NAMES - {route.permission, "*", "admin"})]
    caller = await api.server.caller(api.alice.user, *others)
    refused = await caller.request(route.method, path(route), expect=403, **options(route))
    assert refused["code"] == "insufficient_permissions"
    assert refused["detail"] == f"This takes the permission {route.permission}."


@pytest.mark.parametrize("route", GUARDED, ids=name)
async def test_with_its_own_permission_alone_it_answers(api: Api, route: Route) -> None:
    caller = await api.server.caller(api.alice.user, str(route.permission))
    # Past the permission it is 404 for an id that is none, and 422 where the empty body lacks something; a key and a
    # usage record lack nothing.
    if "{id}" in route.path:
        expect = 404
    elif route.method == "POST":
        expect = 201 if route.path in {"/v1/api-keys", "/v1/usage"} else 422
    else:
        expect = 200
    await caller.request(route.method, path(route), expect=expect, **options(route))


@pytest.mark.parametrize("route", PUBLIC, ids=name)
async def test_a_public_route_asks_nobody_who_they_are(api: Api, route: Route) -> None:
    await api.anonymous.request(route.method, path(route), expect=200)


@pytest.mark.parametrize("route", [route for route in WITH_ID if noun(route) in NEW], ids=name)
async def test_what_belongs_to_another_user_is_404_and_stays_as_it_is(api: Api, route: Route) -> None:
    await a_package(api)
    made = await api.alice.post(f"/v1/{noun(route)}", NEW[noun(route)])
    address = f"/v1/{noun(route)}/{made['id']}"
    before = (await api.alice.get(address)).body
    body = {"json": CHANGES} if route.method == "PATCH" else options(route)
    for stranger in (api.bob, api.admin):
        refused = await stranger.request(route.method, path(route, made["id"]), expect=404, **body)
        assert refused["code"] == "not_found"
        assert made["id"] not in refused["detail"]
    assert (await api.alice.get(address)).body == before


@pytest.mark.parametrize("noun", NEW)
async def test_a_list_shows_nothing_of_another_user(api: Api, noun: str) -> None:
    await a_package(api)
    made = await api.alice.post(f"/v1/{noun}", NEW[noun])
    assert made["id"] in [row["id"] for row in (await api.alice.get(f"/v1/{noun}"))["data"]]
    for stranger in (api.bob, api.admin):
        assert made["id"] not in [row["id"] for row in await stranger.all(f"/v1/{noun}")]


async def a_package(api: Api) -> None:
    """A package with the id that NEW names, once for the module."""
    api.server.sql(
        "insert into packages (id, name, price) values ('pkg_of_the_test', 'test', 1) on conflict do nothing"
    )
