"""A request that is sent again: by somebody else, with other rights, or with another body under the same key."""

from typing import Any

import pytest

from crafely.api import ROUTES
from tests.api.conftest import Client
from tests.attack.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "of-the-first"
AGENT = {"name": "x", "instructions": "the first one's"}


async def first(world: World) -> tuple[Client, Any]:
    """Somebody's request under a key that others learn."""
    owner = await world.server.caller("first", "*")
    made = await owner.post("/v1/agents", AGENT, headers={"Idempotency-Key": KEY})
    return owner, made


async def test_a_key_of_another_user_is_only_a_word(world: World) -> None:
    _, made = await first(world)
    stranger = world.server.with_token(
        world.server.signer.token(sub="first\u00e9".encode("ascii", "ignore").decode() + "2")
    )
    for caller in (world.mallory, world.admin, stranger):
        for body in (AGENT, {**AGENT, "name": "another"}):
            headers = {"Idempotency-Key": KEY}
            answer = await world.strike(
                "idempotency keys of others",
                "POST",
                "/v1/agents",
                by=caller,
                json=body,
                headers=headers,
                expect=[201, 422],
            )
            assert answer.status == 422 or answer["id"] != made["id"]


async def test_a_replay_takes_the_permission_of_its_route(world: World) -> None:
    _, made = await first(world)
    weak = await world.server.caller("first", "agents:read", "threads:write", "keys:read")
    headers = {"Idempotency-Key": KEY}
    for route in [one for one in ROUTES if one.method == "POST" and "{" not in one.path and one.permission]:
        answer = await world.strike(
            "replays without the permission",
            "POST",
            route.path,
            by=weak,
            json=AGENT,
            headers=headers,
            expect=[403, 422],
        )
        assert made["id"] not in answer.raw.decode()


async def test_a_replay_never_carries_a_secret_nor_more_rights(world: World) -> None:
    owner = await world.server.caller("first", "keys:write", "agents:read")
    headers = {"Idempotency-Key": "a-new-key"}
    body = {"permissions": ["agents:read"]}
    made = await owner.post("/v1/api-keys", body, headers=headers)
    again = await world.strike(
        "replays of a secret", "POST", "/v1/api-keys", by=owner, json=body, headers=headers, expect=[201]
    )
    assert (again["id"], again["key"]) == (made["id"], None)
    assert made["key"] not in again.raw.decode()
    for permissions in (["*"], ["admin"], ["agents:write"]):
        sent = {"permissions": permissions}
        await world.strike(
            "replays with more rights", "POST", "/v1/api-keys", by=owner, json=sent, headers=headers, expect=[403, 422]
        )
    kept = world.server.sql("select to_jsonb(t)::text from idempotency_keys t")
    assert kept
    for (text,) in kept:
        assert made["key"] not in text
        assert made["key"].split("_")[3][:32] not in text


async def test_a_revoked_key_replays_nothing(world: World) -> None:
    owner, _ = await first(world)
    me = await owner.get("/v1/me")
    await owner.delete(f"/v1/api-keys/{me['apiKeyId']}")
    headers = {"Idempotency-Key": KEY}
    await world.strike(
        "replays with a revoked key", "POST", "/v1/agents", by=owner, json=AGENT, headers=headers, expect=[401]
    )
