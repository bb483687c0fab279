"""More rights than one has: through keys that are made, changed and replaced, and fields that nobody offers."""

from typing import Any

import pytest

from crafely.api import ROUTES
from crafely.api.pages import encode_cursor
from crafely.auth.permissions import NAMES
from tests.api.conftest import Client, description
from tests.attack.conftest import World
from tests.attack.places import options, places, sample

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What looks like a permission that one lacks.
LOOKALIKES = [
    "ADMIN",
    "Admin",
    "admin ",
    " admin",
    "admin\n",
    "admin\0",
    "\uff41dmin",
    "\u0430dmin",
    "adm\u0131n",
    "admi\u0301n",
    "admin\u200b",
    "admin:*",
    "*:*",
    "**",
    "*,admin",
    "admin,*",
    "monitor:*",
    "*:read",
    "monitor:read ",
    "keys:write;admin",
    "{admin}",
    '"admin"',
    "\uff0a",
    "",
]
# What each kind of caller holds, and what it must not get.
HOLDERS = {
    "one noun": (
        ["keys:read", "keys:write", "agents:read"],
        ["agents:write", "*", "admin", "monitor:read", "usage:write"],
    ),
    "everything of users": (["*"], ["admin", "monitor:read"]),
    "the desk": (["keys:read", "keys:write", "monitor:read"], ["admin", "*", "agents:read"]),
}
# Ways to make a key from permissions: method, path, and the rest of the body.
WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/api-keys", {}),
    ("POST", "/v1/api-keys", {"name": "x", "rateLimit": 1}),
    ("PATCH", "/v1/api-keys/{own}", {}),
    ("PATCH", "/v1/api-keys/{self}", {}),
    ("POST", "/v1/api-keys/{own}/rotate", {"overlapSeconds": 60}),
]


async def holder(world: World, permissions: list[str]) -> tuple[Client, dict[str, str]]:
    """A user's key with these permissions, its id and that of another key with none."""
    client = await world.server.caller("mallory", *permissions)
    me = await client.get("/v1/me")
    other = await client.post("/v1/api-keys", {"permissions": []})
    return client, {"self": me["apiKeyId"], "own": other["id"]}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]} {way[1]}")
@pytest.mark.parametrize("kind", HOLDERS)
async def test_nobody_gets_more_than_he_holds(world: World, kind: str, way: tuple[str, str, dict[str, Any]]) -> None:
    held, wanted = HOLDERS[kind]
    client, ids = await holder(world, held)
    method, path, rest = way
    address = path.format(**ids)
    for permissions in [[one] for one in wanted] + [[*held, one] for one in wanted] + [[one] for one in LOOKALIKES]:
        body = {**rest, "permissions": permissions}
        await world.strike("more permissions", method, address, by=client, json=body, expect=[403, 422])
    for body in ({"permissions": {"admin": True}}, {"permissions": "admin"}, {"permissions": [["admin"]]}):
        await world.strike("more permissions", method, address, by=client, json={**rest, **body}, expect=[422])
    await assert_unchanged(world, client, held)


async def assert_unchanged(world: World, client: Client, held: list[str]) -> None:
    """The caller holds what it held, and no key of the user's holds more than that."""
    assert (await client.get("/v1/me"))["permissions"] == sorted(held)
    rows = world.server.sql("select permissions from api_keys where user_id = 'mallory'")
    assert {name for (names,) in rows for name in names} <= NAMES - {"admin"}


async def test_a_key_that_holds_more_can_be_neither_changed_nor_replaced_by_one_that_holds_less(world: World) -> None:
    strong = await world.server.caller("mallory", "*")
    target = (await strong.get("/v1/me"))["apiKeyId"]
    weak, _ = await holder(world, ["keys:read", "keys:write"])
    changes: list[dict[str, Any]] = [{"name": "x"}, {"permissions": []}, {"rateLimit": 1}, {"expiresAt": None}]
    for body in changes:
        await world.strike(
            "a stronger key of one's own", "PATCH", f"/v1/api-keys/{target}", by=weak, json=body, expect=[403]
        )
    for body in ({"overlapSeconds": 60}, {"overlapSeconds": 0}):
        address = f"/v1/api-keys/{target}/rotate"
        await world.strike("a stronger key of one's own", "POST", address, by=weak, json=body, expect=[403])
    assert (await strong.get(f"/v1/api-keys/{target}"))["permissions"] == ["*"]


async def test_a_key_that_replaces_another_holds_what_that_one_held(world: World) -> None:
    client, ids = await holder(world, ["keys:read", "keys:write"])
    made = await world.strike(
        "rotation", "POST", f"/v1/api-keys/{ids['self']}/rotate", by=client, json={"overlapSeconds": 60}, expect=[201]
    )
    assert made["permissions"] == ["keys:read", "keys:write"]
    heir = world.server.with_token(made["key"])
    for method, path in (("GET", "/v1/agents"), ("GET", "/v1/monitor/pool"), ("POST", "/v1/packages")):
        body: dict[str, Any] = {"json": {"name": "x", "price": "1"}} if method == "POST" else {}
        await world.strike("rotation", method, path, by=heir, expect=[403], **body)
    # Of a family nobody but its own user ends anything.
    for stranger in (world.victim, world.admin):
        for path in (f"/v1/api-keys/{made['id']}?family=true", f"/v1/api-keys/{ids['self']}?family=true"):
            await world.strike("rotation", "DELETE", path, by=stranger, expect=[404])
    await heir.get("/v1/me")


async def test_permissions_that_were_taken_away_are_gone_at_once(world: World) -> None:
    client, ids = await holder(world, ["keys:write", "agents:read"])
    await world.mallory.patch(f"/v1/api-keys/{ids['self']}", {"permissions": ["keys:write"]})
    await world.strike("permissions taken away", "GET", "/v1/agents", by=client, expect=[403])
    for permissions in (["agents:read"], ["keys:write", "agents:read"]):
        body = {"permissions": permissions}
        await world.strike(
            "permissions taken away", "PATCH", f"/v1/api-keys/{ids['self']}", by=client, json=body, expect=[403]
        )


# Columns of ours, and what other frameworks call the same: none may be written by naming it.
COLUMNS = [
    "id",
    "userId",
    "user_id",
    "active",
    "hashedKey",
    "hashed_key",
    "keyId",
    "key_id",
    "rotatedFrom",
    "rotated_from",
    "createdAt",
    "updatedAt",
    "deletedAt",
    "lastUsedAt",
    "status",
    "role",
    "isAdmin",
    "admin",
    "scopes",
    "tenantId",
    "__proto__",
    "constructor",
    "_method",
    "$set",
]
WRITING = [route for route in ROUTES if route.method in {"POST", "PATCH"} and route.permission is not None]
WITH_BODY = [route for route in WRITING if "requestBody" in description()["paths"][route.path][route.method.lower()]]


@pytest.mark.parametrize("route", WITH_BODY, ids=lambda route: f"{route.method} {route.path}")
async def test_no_field_is_written_that_is_not_offered(world: World, route: Any) -> None:
    schema = description()["paths"][route.path][route.method.lower()]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    one = next(kind for kind in options(schema) if kind.get("type") == "object")
    offered = set(one["properties"])
    body = sample(one, {"packageId": world.package})
    path = route.path.replace("{id}", "nothing")
    for name in [name for name in COLUMNS if name not in offered]:
        sent = {**body, name: "victim"}
        answer = await world.strike("mass assignment", route.method, path, by=world.admin, json=sent, expect=[422])
        assert f"/{name}" in [place for place in answer.places if place], (route.path, name)
        sent = {**body, name: True}
        await world.strike("mass assignment", route.method, path, by=world.admin, json=sent, expect=[422])


async def test_no_other_method_is_smuggled_in(world: World) -> None:
    made = await world.mallory.post("/v1/agents", {"name": "x", "instructions": ""})
    address = f"/v1/agents/{made['id']}"
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        for method in ("DELETE", "PATCH"):
            headers = {name: method}
            await world.strike("method override", "GET", address, by=world.mallory, headers=headers, expect=[200])
            await world.strike(
                "method override", "POST", address, by=world.mallory, headers=headers, json={}, expect=[405]
            )
    await world.strike("method override", "GET", f"{address}?_method=DELETE", by=world.mallory, expect=[422])
    assert (await world.mallory.get(address)).body == made.body


CURSORS = [place for place in places() if place.kind == "query" and place.name == "cursor"]


@pytest.mark.parametrize("place", CURSORS, ids=str)
async def test_a_cursor_opens_nothing_that_a_list_would_not(world: World, place: Any) -> None:
    """Those of other lists and other users are positions, no keys: what they lead to is the caller's own."""
    foreign = [await cursor(world, noun) for noun in ("agents", "threads", "api-keys", "usage")]
    for text in [one for one in foreign if one]:
        caller = world.admin if "by-user" in place.path else world.mallory
        path = f"{place.path}?cursor={text}"
        answer = await world.strike("somebody else's cursor", "GET", path, by=caller, expect=[200, 422, 403])
        if answer.status == 200:
            assert not {row.get("id") for row in answer["data"]} & set(world.ids.values())
        for changed in tampered(text):
            answer = await world.strike("tampered cursors", "GET", f"{place.path}?cursor={changed}", by=caller)
            assert answer.status in {422, 403}, (place, changed)


_cursors: dict[tuple[int, str], str] = {}


async def cursor(world: World, noun: str) -> str:
    """The cursor that a list of the victim's would give behind its first row."""
    if (known := _cursors.get((id(world), noun))) is not None:
        return known
    table = noun.replace("-", "_")
    rows = world.server.sql(f"select created_at, id from {table} where user_id = 'victim' limit 1")  # noqa: S608 - ours
    return _cursors.setdefault((id(world), noun), encode_cursor(*rows[0]))


def tampered(text: str) -> list[str]:
    """One letter changed at each fifth place, cut, doubled, padded, in another alphabet."""
    changed = [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(0, len(text), 5)]
    return [*changed, text[:-1], text + "A", text + text, text + "=", text.swapcase(), text[::-1], "%00" + text]


async def test_if_match_protects_and_opens_nothing(world: World) -> None:
    """Somebody who knows the version of a thing of the victim's can do no more than somebody who does not."""
    address = f"/v1/agents/{world.ids['agents']}"
    for tag in (world.etag, "*", f"W/{world.etag}", f'"x", {world.etag}'):
        for caller in (world.mallory, world.admin):
            sent: dict[str, Any] = {"by": caller, "headers": {"If-Match": tag}, "expect": [404]}
            await world.strike("If-Match", "PATCH", address, json={"name": "x"}, **sent)
            await world.strike("If-Match", "DELETE", address, **sent)
            sent["headers"] = {"If-None-Match": tag}
            await world.strike("If-Match", "GET", address, **sent)
