"""``/v1/agents``, end to end."""

from typing import Any

import pytest

from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")

SUPPORT: dict[str, Any] = {
    "name": "Support",
    "instructions": "Answer in the customer's language. Ünïcödé 🙂 'quotes' and \"more\".",
    "tools": [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}],
    "context": "Opening hours: 9 to 17.",
}


async def test_an_agent_is_created_and_read_back_as_it_was_given(api: Api) -> None:
    made = await api.alice.post("/v1/agents", SUPPORT)
    assert made.headers["Location"] == f"/v1/agents/{made['id']}"
    assert made["id"].startswith("agnt_")
    assert {name: made[name] for name in SUPPORT} == SUPPORT
    assert "threads" not in made.body
    assert (await api.alice.get(made.headers["Location"])).body == made.body


async def test_tools_and_context_may_be_left_out(api: Api) -> None:
    made = await api.alice.post("/v1/agents", {"name": "Bare", "instructions": ""})
    assert (made["tools"], made["context"]) == (None, None)
    null = await api.alice.post("/v1/agents", {"name": "Bare", "instructions": "", "tools": None, "context": None})
    assert (null["tools"], null["context"]) == (None, None)


async def test_lists_are_narrow_and_newest_first(api: Api) -> None:
    ids = [(await api.alice.post("/v1/agents", {**SUPPORT, "name": f"Agent {n}"}))["id"] for n in range(3)]
    rows = (await api.alice.get("/v1/agents"))["data"]
    assert [row["id"] for row in rows] == ids[::-1]
    assert all(set(row) == {"id", "name", "createdAt", "updatedAt"} for row in rows)


@pytest.mark.parametrize(
    ("beginning", "found"),
    [
        ("sup", ["support desk", "Support"]),
        ("SUPPORT ", ["support desk"]),
        ("%", ["%off"]),
        ("_", []),
        ("\\", []),
        ("ort", []),
    ],
)
async def test_agents_are_found_by_the_beginning_of_their_name(api: Api, beginning: str, found: list[str]) -> None:
    for name in ("Support", "Sales", "support desk", "%off"):
        await api.alice.post("/v1/agents", {"name": name, "instructions": ""})
    assert [row["name"] for row in await api.alice.all("/v1/agents", name=beginning)] == found
    assert [row["name"] for row in await api.alice.all("/v1/agents", name=beginning, take="1")] == found


async def test_cursors_and_skip_lead_through_the_same_list(api: Api) -> None:
    ids = [(await api.alice.post("/v1/agents", {"name": f"{n}", "instructions": ""}))["id"] for n in range(7)]
    newest_first = ids[::-1]
    assert [row["id"] for row in await api.alice.all("/v1/agents", take="3")] == newest_first
    pages = [await api.alice.get("/v1/agents", params={"take": 3, "skip": skip}) for skip in (0, 3, 6, 9)]
    assert [[row["id"] for row in page["data"]] for page in pages] == [
        newest_first[:3],
        newest_first[3:6],
        newest_first[6:],
        [],
    ]
    assert [page["nextCursor"] is None for page in pages] == [False, False, True, True]
    # A page that is just full is the last one, if nothing follows.
    assert (await api.alice.get("/v1/agents", params={"take": 7}))["nextCursor"] is None


async def test_a_cursor_holds_its_place_while_rows_come_and_go(api: Api) -> None:
    ids = [(await api.alice.post("/v1/agents", {"name": f"{n}", "instructions": ""}))["id"] for n in range(4)]
    first = await api.alice.get("/v1/agents", params={"take": 2})
    await api.alice.post("/v1/agents", {"name": "late", "instructions": ""})
    await api.alice.delete(f"/v1/agents/{ids[2]}")
    second = await api.alice.get("/v1/agents", params={"take": 2, "cursor": first["nextCursor"]})
    assert [row["id"] for row in second["data"]] == [ids[1], ids[0]]


async def test_rows_of_one_moment_are_all_listed_once(api: Api) -> None:
    api.server.sql(
        "insert into agents (user_id, name, instructions, created_at)"
        " select %s, n::text, '', '2026-01-01' from generate_series(1, 25) n",
        api.alice.user,
    )
    rows = await api.alice.all("/v1/agents", take="4")
    assert sorted(int(row["name"]) for row in rows) == list(range(1, 26))


async def test_a_change_changes_what_was_sent_and_nothing_else(api: Api) -> None:
    made = await api.alice.post("/v1/agents", SUPPORT)
    path = made.headers["Location"]
    changed = await api.alice.patch(path, {"instructions": "Be brief."})
    assert changed["updatedAt"] > made["updatedAt"]
    assert changed.body == {**made.body, "instructions": "Be brief.", "updatedAt": changed["updatedAt"]}
    assert (await api.alice.get(path)).body == changed.body
    emptied = await api.alice.patch(path, {"tools": None, "context": None})
    assert (emptied["tools"], emptied["context"]) == (None, None)
    assert (await api.alice.patch(path, {"tools": []}))["tools"] == []
    # Nothing sent is no change, not even of updatedAt.
    before = (await api.alice.get(path)).body
    assert (await api.alice.patch(path, {})).body == before


async def test_a_deleted_agent_is_gone_until_it_is_restored(api: Api) -> None:
    made = await api.alice.post("/v1/agents", SUPPORT)
    path = made.headers["Location"]
    await api.alice.delete(path)
    await api.alice.get(path, expect=404)
    await api.alice.get(path, params={"include": "threads"}, expect=404)
    await api.alice.patch(path, {"name": "x"}, expect=404)
    await api.alice.delete(path, expect=404)
    assert await api.alice.all("/v1/agents") == []
    assert await api.alice.all("/v1/agents", name="sup") == []
    await api.alice.post("/v1/threads", {"name": "orphan", "agentId": made["id"]}, expect=422)
    restored = await api.alice.post(f"{path}/restore", expect=200)
    assert restored.body == {**made.body, "updatedAt": restored["updatedAt"]}
    assert [row["id"] for row in await api.alice.all("/v1/agents")] == [made["id"]]
    # A live one stays as it is.
    assert (await api.alice.post(f"{path}/restore", expect=200)).body == restored.body


async def test_include_threads_brings_the_live_ones_newest_first_and_narrow(api: Api) -> None:
    agent = await api.alice.post("/v1/agents", SUPPORT)
    other = await api.alice.post("/v1/agents", SUPPORT)
    body = {"instructions": "long", "model": "gpt-4o", "agentId": agent["id"]}
    threads = [await api.alice.post("/v1/threads", {**body, "name": f"{n}"}) for n in range(3)]
    await api.alice.post("/v1/threads", {"name": "elsewhere", "agentId": other["id"]})
    await api.alice.delete(threads[1].headers["Location"])
    found = await api.alice.get(agent.headers["Location"], params={"include": "threads"})
    assert [row["id"] for row in found["threads"]] == [threads[2]["id"], threads[0]["id"]]
    assert "instructions" not in found["threads"][0]
    # A thread looks the same here, in the list and alone.
    alone = (await api.alice.get(threads[2].headers["Location"])).body
    assert found["threads"][0] == {name: value for name, value in alone.items() if name != "instructions"}
    assert found["threads"] == await api.alice.all("/v1/threads", agentId=agent["id"])


async def test_include_threads_of_an_agent_without_any_is_an_empty_list(api: Api) -> None:
    agent = await api.alice.post("/v1/agents", SUPPORT)
    assert (await api.alice.get(agent.headers["Location"], params={"include": "threads"}))["threads"] == []


async def test_include_threads_brings_at_most_a_hundred(api: Api) -> None:
    agent = await api.alice.post("/v1/agents", SUPPORT)
    api.server.sql(
        "insert into threads (user_id, agent_id, name, created_at)"
        " select user_id, id, n::text, now() + n * interval '1 second' from agents, generate_series(1, 103) n"
        " where id = %s",
        agent["id"],
    )
    found = await api.alice.get(agent.headers["Location"], params={"include": "threads"})
    assert [row["name"] for row in found["threads"]] == [str(n) for n in range(103, 3, -1)]
