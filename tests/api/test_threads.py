"""``/v1/threads``, end to end."""

from typing import Any

import pytest

from tests.api.conftest import Answer, Api, Client

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def an_agent(caller: Client) -> Answer:
    return await caller.post("/v1/agents", {"name": "Agent", "instructions": "Help."})


async def test_a_thread_is_created_and_read_back_as_it_was_given(api: Api) -> None:
    agent = await an_agent(api.alice)
    body = {
        "name": "Refund",
        "agentId": agent["id"],
        "storageId": f"s3://{api.alice.user}",
        "instructions": "Be kind.",
        "model": "claude-sonnet-4-5",
    }
    made = await api.alice.post("/v1/threads", body)
    assert made["id"].startswith("thrd_")
    assert made.headers["Location"] == f"/v1/threads/{made['id']}"
    assert {name: made[name] for name in body} == body
    assert (await api.alice.get(made.headers["Location"])).body == made.body


async def test_a_thread_needs_no_agent(api: Api) -> None:
    made = await api.alice.post("/v1/threads", {"name": "Alone"})
    assert [made[name] for name in ("agentId", "storageId", "instructions", "model")] == [None] * 4


async def test_lists_are_narrow_newest_first_and_by_agent(api: Api) -> None:
    agent = await an_agent(api.alice)
    ids = [
        (await api.alice.post("/v1/threads", {"name": f"{n}", "agentId": agent["id"] if n % 2 else None}))["id"]
        for n in range(5)
    ]
    rows = await api.alice.all("/v1/threads", take="2")
    assert [row["id"] for row in rows] == ids[::-1]
    assert all("instructions" not in row for row in rows)
    assert [row["id"] for row in await api.alice.all("/v1/threads", agentId=agent["id"], take="1")] == [ids[3], ids[1]]
    skipped = await api.alice.get("/v1/threads", params={"skip": 4})
    assert [row["id"] for row in skipped["data"]] == [ids[0]]
    assert await api.bob.all("/v1/threads", agentId=agent["id"]) == []


@pytest.mark.parametrize("whose", ["nobody's", "another user's", "deleted"])
async def test_a_thread_goes_only_under_a_live_agent_of_its_user(api: Api, whose: str) -> None:
    agent = await an_agent(api.bob if whose == "another user's" else api.alice)
    id_ = "agnt_nothing" if whose == "nobody's" else agent["id"]
    if whose == "deleted":
        await api.alice.delete(agent.headers["Location"])
    thread = await api.alice.post("/v1/threads", {"name": "one"})
    refusals = [
        await api.alice.post("/v1/threads", {"name": "two", "agentId": id_}, expect=422),
        await api.alice.patch(thread.headers["Location"], {"agentId": id_}, expect=422),
    ]
    for refused in refusals:
        assert refused.places == ["/agentId"]
        assert "agnt_" not in refused["detail"]
    assert [row["agentId"] for row in await api.alice.all("/v1/threads")] == [None]


async def test_a_storage_id_is_taken_once(api: Api) -> None:
    storage = f"s3://{api.alice.user}"
    await api.alice.post("/v1/threads", {"name": "one", "storageId": storage})
    other = await api.bob.post("/v1/threads", {"name": "two"})
    for refused in (
        await api.bob.post("/v1/threads", {"name": "two", "storageId": storage}, expect=409),
        await api.bob.patch(other.headers["Location"], {"storageId": storage}, expect=409),
    ):
        assert refused["code"] == "already_exists"
        assert refused.places == ["/storageId"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "new"},
        {"instructions": "Be brief."},
        {"model": "gpt-4o"},
        {"storageId": None},
        {"agentId": None},
        {"instructions": None, "model": None},
    ],
)
async def test_a_change_changes_what_was_sent_and_nothing_else(api: Api, change: dict[str, Any]) -> None:
    agent = await an_agent(api.alice)
    body = {"name": "old", "agentId": agent["id"], "storageId": api.alice.user, "instructions": "x", "model": "gpt-4"}
    made = await api.alice.post("/v1/threads", body)
    changed = await api.alice.patch(made.headers["Location"], change)
    assert changed.body == {**made.body, **change, "updatedAt": changed["updatedAt"]}
    assert changed["updatedAt"] > made["updatedAt"]
    assert (await api.alice.get(made.headers["Location"])).body == changed.body


async def test_a_thread_moves_to_another_agent(api: Api) -> None:
    first, second = await an_agent(api.alice), await an_agent(api.alice)
    thread = await api.alice.post("/v1/threads", {"name": "moving", "agentId": first["id"]})
    await api.alice.patch(thread.headers["Location"], {"agentId": second["id"]})
    assert await api.alice.all("/v1/threads", agentId=first["id"]) == []
    assert [row["id"] for row in await api.alice.all("/v1/threads", agentId=second["id"])] == [thread["id"]]


async def test_a_deleted_thread_is_gone_until_it_is_restored(api: Api) -> None:
    agent = await an_agent(api.alice)
    made = await api.alice.post("/v1/threads", {"name": "one", "agentId": agent["id"]})
    path = made.headers["Location"]
    await api.alice.delete(path)
    await api.alice.get(path, expect=404)
    await api.alice.patch(path, {"name": "x"}, expect=404)
    await api.alice.delete(path, expect=404)
    assert await api.alice.all("/v1/threads") == []
    assert await api.alice.all("/v1/threads", agentId=agent["id"]) == []
    restored = await api.alice.post(f"{path}/restore", expect=200)
    assert restored.body == {**made.body, "updatedAt": restored["updatedAt"]}
    assert [row["id"] for row in await api.alice.all("/v1/threads")] == [made["id"]]
    assert (await api.alice.post(f"{path}/restore", expect=200)).body == restored.body


async def test_threads_stay_when_their_agent_is_deleted(api: Api) -> None:
    agent = await an_agent(api.alice)
    thread = await api.alice.post("/v1/threads", {"name": "one", "agentId": agent["id"]})
    await api.alice.delete(agent.headers["Location"])
    assert (await api.alice.get(thread.headers["Location"])).body == thread.body
    # It can still be changed where it is.
    await api.alice.patch(thread.headers["Location"], {"name": "two"})
