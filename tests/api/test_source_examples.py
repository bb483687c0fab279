"""Each operation that the source application wrote with Prisma or zod, as a request: same question, same answer."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_source_example_active_api_keys_of_a_user_newest_first(api: Api) -> None:
    # prisma.apiKey.findMany({ where: { userId, active: true }, orderBy: { createdAt: "desc" } })
    made = [(await api.alice.post("/v1/api-keys", {"name": f"{number}"}))["id"] for number in range(3)]
    await api.alice.delete(f"/v1/api-keys/{made[1]}")
    await api.bob.post("/v1/api-keys", {"name": "of another"})
    rows = (await api.alice.get("/v1/api-keys", params={"active": "true"}))["data"]
    own = (await api.alice.get("/v1/me"))["apiKeyId"]
    assert [row["id"] for row in rows] == [made[2], made[0], own]
    assert [row["createdAt"] for row in rows] == sorted((row["createdAt"] for row in rows), reverse=True)


async def test_source_example_usage_grouped_by_provider_and_model(api: Api) -> None:
    # prisma.usage.groupBy({ by: ["provider", "model"], where: { userId, createdAt: { gte, lte } },
    #                        _sum: { tokensTotal: true, cost: true } })
    start = datetime.now(UTC) - timedelta(days=3)
    calls = [
        ("openai", "gpt-4o", 1200, "0.006000", start),
        ("openai", "gpt-4o", 800, "0.004000", start + timedelta(days=1)),
        ("openai", "text-embedding-3-small", 20, "0.0000004", start + timedelta(hours=5)),
        ("anthropic", "claude-sonnet-4-5", 500, "0.0075", start + timedelta(days=2)),
        ("openai", "gpt-4o", 999, "9", start - timedelta(seconds=1)),
    ]
    await api.alice.post(
        "/v1/usage",
        [
            {"provider": provider, "model": model, "tokensTotal": tokens, "cost": cost, "createdAt": at.isoformat()}
            for provider, model, tokens, cost, at in calls
        ],
    )
    params = {"groupBy": "provider,model", "from": start.isoformat(), "to": datetime.now(UTC).isoformat()}
    rows = (await api.alice.get("/v1/usage/stats", params=params))["data"]
    assert [(row["provider"], row["model"], row["tokensTotal"], row["cost"]) for row in rows] == [
        ("anthropic", "claude-sonnet-4-5", 500, "0.007500000000"),
        ("openai", "gpt-4o", 2000, "0.010000000000"),
        ("openai", "text-embedding-3-small", 20, "0.000000400000"),
    ]


async def test_source_example_agent_with_its_live_threads_newest_first(api: Api) -> None:
    # prisma.agent.findUnique({ where: { id }, include: { threads: { where: { deletedAt: null },
    #                                                                orderBy: { createdAt: "desc" } } } })
    agent = await api.alice.post("/v1/agents", {"name": "Support", "instructions": "Help."})
    threads = [
        (await api.alice.post("/v1/threads", {"name": f"{number}", "agentId": agent["id"]}))["id"]
        for number in range(3)
    ]
    await api.alice.delete(f"/v1/threads/{threads[1]}")
    found = await api.alice.get(f"/v1/agents/{agent['id']}", params={"include": "threads"})
    assert [thread["id"] for thread in found["threads"]] == [threads[2], threads[0]]


async def test_source_example_api_key_and_its_usage_in_one_transaction(api: Api) -> None:
    # prisma.$transaction(async (tx) => { apiKey = await tx.apiKey.create(…); usage = await tx.usage.create(…) })
    usage = {"provider": "openai", "model": "gpt-4", "type": "chat", "tokensTotal": 0, "cost": 0}
    made = await api.alice.post("/v1/api-keys", {"name": "Production", "usage": usage})
    # xmin is the transaction that wrote a row: both have the same.
    [(key_transaction, usage_transaction, key_user, usage_user)] = api.server.sql(
        "select k.xmin::text, u.xmin::text, k.user_id, u.user_id from api_keys k join usage u on u.api_key_id = k.id"
        " where k.id = %s and u.id = %s",
        made["id"],
        made["usageId"],
    )
    assert key_transaction == usage_transaction
    assert key_user == usage_user == api.alice.user
    # And where the second half cannot be, neither is the first.
    await api.alice.post("/v1/api-keys", {"name": "Half", "usage": {**usage, "cost": "-1"}}, expect=422)
    assert "Half" not in [row["name"] for row in await api.alice.all("/v1/api-keys")]


async def test_source_example_daily_usage_by_user(api: Api) -> None:
    # prisma.usage.groupBy({ by: ["userId", "createdAt"], where: { createdAt: { gte: startOfDay, lt: endOfDay } },
    #                        _sum: { tokensTotal: true, cost: true } })
    noon = (datetime.now(UTC) - timedelta(days=2)).replace(hour=12)
    for caller, cost in ((api.alice, "0.0000004"), (api.alice, "1.5"), (api.bob, "2")):
        await caller.post("/v1/usage", {"tokensTotal": 20, "cost": cost, "createdAt": noon.isoformat()})
    await api.alice.post("/v1/usage", {"tokensTotal": 1, "cost": "1"})
    day = noon.date()
    params = {"from": str(day), "to": str(day + timedelta(days=1))}
    rows = (await api.admin.get("/v1/usage/daily-by-user", params=params))["data"]
    sums = {row["userId"]: (row["day"], row["tokensTotal"], Decimal(row["cost"])) for row in rows}
    assert sums[api.alice.user] == (str(day), 40, Decimal("1.5000004"))
    assert sums[api.bob.user] == (str(day), 20, Decimal(2))


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"name": "x", "permissions": []}, None),
        ({"name": "x" * 255, "permissions": ["agents:read"], "expiresAt": "2999-01-01T00:00:00Z"}, None),
        ({"name": "", "permissions": []}, "/name"),
        ({"name": "x" * 256, "permissions": []}, "/name"),
        ({"name": 7, "permissions": []}, "/name"),
        ({"name": "x", "permissions": "agents:read"}, "/permissions"),
        ({"name": "x", "permissions": [7]}, "/permissions/0"),
        ({"name": "x", "permissions": [], "expiresAt": "tomorrow"}, "/expiresAt"),
    ],
)
async def test_source_example_validation_of_a_new_api_key(api: Api, body: dict[str, Any], place: str | None) -> None:
    # In words: name of 1 to 255 characters, permissions an array of strings, expiresAt a date that may be left out.
    if place is None:
        made = await api.alice.post("/v1/api-keys", body)
        assert {name: made[name] for name in body} == body
    else:
        refused = await api.alice.post("/v1/api-keys", body, expect=422)
        assert refused.places == [place]
