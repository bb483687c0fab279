"""Every id of the victim's at every place that takes one, by everybody else: from the description.

tests/test_tenancy.py asks the same of SQL, and tests/api/test_permissions.py of each route with an id of its own noun.
"""

from itertools import product
from typing import Any

import pytest

from tests.api.conftest import Client, description
from tests.attack.conftest import MARK, World
from tests.attack.places import Place, kinds, options, places, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Any text that a path, a query or a body calls an id.
IDS = [place for place in places() if str((place.name, *place.steps)[-1]).lower().endswith("id")]
IDS = [place for place in IDS if place.kind != "header"]
# A package is everybody's, and the client's own names are no ids of ours.
IDS = [
    place
    for place in IDS
    if "/packages/" not in place.path and place.steps[-1:] not in {("packageId",), ("eventId",), ("storageId",)}
]


_others: dict[int, list[Client]] = {}


def others(world: World) -> list[Client]:
    """Everybody but the victim: with a key, as an administrator, and both with session tokens."""
    tokens = [world.server.signer.token(sub=sub) for sub in ("mallory", "user_root")]
    clients = [world.mallory, world.admin, *map(world.server.with_token, tokens)]
    return _others.setdefault(id(world), clients)


async def test_there_are_ids() -> None:
    named = {str(place) for place in IDS}
    assert named >= {
        "GET /v1/agents/{id} path id",
        "PATCH /v1/threads/{id} path id",
        "PATCH /v1/threads/{id} body /agentId",
        "POST /v1/threads body /agentId",
        "POST /v1/usage body /apiKeyId",
        "POST /v1/usage body /0/apiKeyId",
        "GET /v1/usage query apiKeyId",
        "GET /v1/threads query agentId",
        "POST /v1/user-subscriptions body /userId",
    }


@pytest.mark.parametrize("place", IDS, ids=str)
async def test_nobody_reaches_them(world: World, place: Place) -> None:
    for caller, id_ in product(others(world), [*world.ids.values(), "victim"]):
        if caller in others(world)[1::2] and (place.steps == ("userId",) or place.path == "/v1/audit-log"):
            continue  # Administrators may subscribe anybody, and read everybody's trail.
        own = {"packageId": world.package, **({"id": "nothing", "key": "x"} if place.kind == "path" else {})}
        path, sent = request(place, id_, **own)
        answer = await world.strike("somebody else's id", place.method, path, by=caller, **sent)
        if place.kind == "path":
            assert answer.status in {403, 404, 422}, place
        elif answer.status == 200 and "data" in answer.body:
            assert answer["data"] == [], place
        elif answer.status == 201:
            assert answer.body.get("recorded") == 0, place


LISTS = [path for path, methods in description()["paths"].items() if "get" in methods and "{" not in path]


@pytest.mark.parametrize("path", [path for path in LISTS if path.startswith("/v1/")])
async def test_no_list_and_no_sum_shows_anything(world: World, path: str) -> None:
    """With every value that its own parameters take, one by one; strike() looks for what is the victim's."""
    operation = description()["paths"][path]["get"]
    for caller in others(world):
        answer = await world.strike("lists and sums", "GET", path, by=caller, expect=[200, 403])
        rows = answer.body.get("data", []) if answer.status == 200 else []
        for row in rows:
            assert row.get("id") not in world.ids.values()
            # What administrators see of everybody; 403 for all others.
            everybodys = caller in others(world)[1::2] and path in {"/v1/usage/daily-by-user", "/v1/audit-log"}
            assert everybodys or row.get("userId") != "victim"
        for parameter in operation.get("parameters", []):
            for one in options(parameter["schema"]):
                values: list[Any] = one.get("enum", [])
                values += [MARK, "victim"] if "string" in kinds(one) else []
                for value in values:
                    query = f"{path}?{parameter['name']}={value}"
                    await world.strike("lists and sums", "GET", query, by=caller, expect=[200, 403, 422])


async def test_the_victims_own_view_has_what_the_others_did_not_see(world: World) -> None:
    """Or nothing above would mean anything."""
    for noun, id_ in world.ids.items():
        seen = await world.victim.get(f"/v1/{noun}")
        assert id_ in [row["id"] for row in seen["data"]]
    assert MARK.encode() in (await world.victim.get(f"/v1/agents/{world.ids['agents']}?include=threads")).raw
