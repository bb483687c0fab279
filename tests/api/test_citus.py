"""The application with CRAFELY_ENGINE=citus, on a PostgreSQL without it: no client sees a difference."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.api.conftest import Api, Client, Server, introduce, serving
from tests.auth.conftest import Signer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRAIL = """
    select user_id, actor_user_id, actor_role, actor_api_key_id is not null, request_id is not null, count(*)
    from audit_log
    where user_id = any(%s)
        and table_name in ('agents', 'threads')
    group by 1, 2, 3, 4, 5
    order by 1
"""
RECORD = {"provider": "p", "model": "m", "tokensIn": 1, "cost": "0.5"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(module_database: str, signer: Signer) -> AsyncIterator[Server]:
    """A server for the tests of this module."""
    async with serving(module_database, signer, engine="citus", pool_timeout=30) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def callers(engine: Server) -> Api:
    return await introduce(engine)


async def test_everybody_at_once_sees_his_own_and_the_trail_knows_who(callers: Api) -> None:
    async def story(client: Client, number: int) -> None:
        body = {"name": f"{client.user} {number}", "instructions": "i"}
        headers = {"Idempotency-Key": f"{client.user} {number}"}
        agent = await client.post("/v1/agents", body, headers=headers)
        again = await client.post("/v1/agents", body, headers=headers)
        assert again["id"] == agent["id"]
        await client.post("/v1/threads", {"name": "t", "agentId": agent["id"]})
        await client.post("/v1/threads", {"name": "t", "agentId": "agnt_of_nobody"}, expect=422)
        await client.post("/v1/usage", RECORD)
        await client.post("/v1/usage", [RECORD, RECORD])
        await client.post("/v1/usage", RECORD, headers={"Idempotency-Key": f"{client.user} usage {number}"})
        names = {row["name"] for row in await client.all("/v1/agents")}
        assert body["name"] in names
        assert all(name.startswith(f"{client.user} ") for name in names)

    clients = (callers.alice, callers.bob)
    async with asyncio.timeout(120):
        await asyncio.gather(*(story(client, number) for number in range(6) for client in clients))

    for client in clients:
        assert len(await client.all("/v1/usage")) == 24
        (day,) = (await client.get("/v1/usage/daily"))["data"]
        assert (day["records"], day["tokensIn"], day["cost"]) == (24, 24, "12.000000000000")
        (sums,) = (await client.get("/v1/usage/stats"))["data"]
        assert sums["records"] == 24
    users = sorted(client.user for client in clients)
    assert callers.server.sql(TRAIL, users) == [(user, user, "crafely_app", True, True, 12) for user in users]


async def test_a_key_and_its_opening_record_are_one_transaction(callers: Api) -> None:
    body = {"name": "k", "permissions": [], "usage": {**RECORD, "eventId": "opening"}}
    made = await callers.alice.post("/v1/api-keys", body)
    await callers.alice.post("/v1/api-keys", body, expect=409)

    (row,) = await callers.alice.all("/v1/usage")
    assert (row["id"], row["apiKeyId"]) == (made["usageId"], made["id"])
    assert len([key for key in await callers.alice.all("/v1/api-keys") if key["name"] == "k"]) == 1


async def test_an_event_counts_once(callers: Api) -> None:
    first = await callers.alice.post("/v1/usage", {**RECORD, "eventId": "e"})
    again = await callers.alice.post("/v1/usage", [{**RECORD, "eventId": "e"}, RECORD])

    assert [(one["status"], one["duplicate"]) for one in again["data"]] == [("duplicate", True), ("recorded", False)]
    assert again["data"][0]["id"] == first["data"][0]["id"]
    assert len(await callers.alice.all("/v1/usage")) == 2
