"""``/v1/audit-log``, end to end: who did what shows up, to whom it may."""

from datetime import datetime
from typing import Any

import pytest

from crafely.api.pages import encode_cursor
from tests.api.conftest import Api, Client

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def an_agent(caller: Client, request_id: str, **fields: Any) -> str:
    body = {"name": "one", "instructions": "", **fields}
    made = await caller.post("/v1/agents", body, headers={"X-Request-Id": request_id})
    return str(made["id"])


async def found(caller: Client, **params: Any) -> list[Any]:
    """What a list says, without the key that the test's user was given before all requests."""
    return [row for row in await caller.all("/v1/audit-log", **params) if row["tableName"] != "api_keys"]


async def test_each_change_names_its_actor_key_and_request(api: Api) -> None:
    agent = await an_agent(api.alice, "audit-1")
    await api.alice.patch(f"/v1/agents/{agent}", {"name": "another"}, headers={"X-Request-Id": "audit-2"})
    await api.alice.delete(f"/v1/agents/{agent}", headers={"X-Request-Id": "audit-3"})

    deleted, updated, inserted = await found(api.alice, tableName="agents", rowId=agent)

    key = (await api.alice.get("/v1/me"))["apiKeyId"]
    for row, request in ((inserted, "audit-1"), (updated, "audit-2"), (deleted, "audit-3")):
        assert (row["userId"], row["actorUserId"], row["actorApiKeyId"]) == (api.alice.user, api.alice.user, key)
        assert (row["requestId"], row["actorRole"], row["rowId"]) == (request, "crafely_app", agent)
        assert "old" not in row
    assert [row["action"] for row in (inserted, updated, deleted)] == ["insert", "update", "update"]
    assert (updated["columns"], deleted["columns"]) == (["name"], ["deleted_at"])
    assert {"id", "name", "user_id"} < set(inserted["columns"])
    entry = await api.alice.get(f"/v1/audit-log/{updated['id']}")
    assert (entry["old"], entry["new"]) == ({"name": "one"}, {"name": "another"})
    assert {name: entry[name] for name in updated} == updated


async def test_a_session_s_changes_have_no_key_and_an_administrator_s_have_no_owner(api: Api) -> None:
    user = f"{api.alice.user}-signed-in"
    agent = await an_agent(api.server.signed_in(user), "audit-session")
    [row] = await found(api.admin, requestId="audit-session")
    assert (row["userId"], row["actorUserId"], row["actorApiKeyId"], row["rowId"]) == (user, user, None, agent)
    package = await api.admin.post(
        "/v1/packages", {"name": api.admin.user, "price": "1"}, headers={"X-Request-Id": "audit-package"}
    )
    [row] = await found(api.admin, requestId="audit-package")
    assert (row["userId"], row["actorUserId"], row["rowId"]) == (None, api.admin.user, package["id"])
    assert row["actorRole"] == "crafely_admin"


async def test_a_key_s_secret_is_nowhere(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {"name": "one"})
    [row] = await api.alice.all("/v1/audit-log", tableName="api_keys", rowId=made["id"])
    entry = await api.alice.get(f"/v1/audit-log/{row['id']}")
    assert entry["new"]["hashed_key"] == "[secret]"
    assert made["key"].rpartition("_")[2] not in entry.raw.decode()


async def test_users_see_their_own_rows_and_administrators_everybodys(api: Api) -> None:
    agent = await an_agent(api.alice, f"of-{api.alice.user}")
    [change] = await found(api.alice, rowId=agent, tableName="agents")
    assert await found(api.bob) == []
    assert await found(api.bob, rowId=agent, tableName="agents") == []
    assert await found(api.bob, requestId=change["requestId"]) == []
    assert await found(api.bob, actorUserId=api.alice.user) == []
    await api.bob.get(f"/v1/audit-log/{change['id']}", expect=404)
    refused = await api.bob.get("/v1/audit-log", params={"userId": api.alice.user}, expect=403)
    assert refused["detail"] == "The changes of others' rows take the permission admin."
    assert await found(api.alice, userId=api.alice.user) == [change]

    assert (await api.admin.get(f"/v1/audit-log/{change['id']}"))["new"]["id"] == agent
    for conditions in (
        {"userId": api.alice.user},
        {"actorUserId": api.alice.user},
        {"tableName": "agents", "rowId": agent},
        {"requestId": change["requestId"]},
    ):
        assert await found(api.admin, **conditions) == [change], conditions
        assert await found(api.admin, **{**conditions, "userId": api.bob.user}) == [], conditions
    assert change in await found(api.admin)


@pytest.mark.parametrize("scope", ["own", "user", "all", "row", "request", "actor"])
async def test_every_filter_narrows_every_list_and_pages_lose_nothing(api: Api, scope: str) -> None:
    request = f"filters-{scope}-{api.alice.user}"
    agent = await an_agent(api.alice, request)
    thread = (await api.alice.post("/v1/threads", {"name": "one"}, headers={"X-Request-Id": request}))["id"]
    for number in range(5):
        await api.alice.patch(f"/v1/agents/{agent}", {"name": str(number)}, headers={"X-Request-Id": request})
    await api.alice.patch(f"/v1/agents/{agent}", {"name": "last"}, headers={"X-Request-Id": "another"})
    caller, conditions = {
        "own": (api.alice, {}),
        "user": (api.admin, {"userId": api.alice.user}),
        "all": (api.admin, {}),
        "row": (api.admin, {"tableName": "agents", "rowId": agent}),
        "request": (api.admin, {"requestId": request}),
        "actor": (api.admin, {"actorUserId": api.alice.user}),
    }[scope]
    rows = [row for row in await found(caller, **conditions) if row["userId"] == api.alice.user]
    last, renamed, inserted = [agent], [agent] * 5, [thread, agent]
    assert [row["rowId"] for row in rows] == {
        "row": [*last, *renamed, agent],
        "request": [*renamed, *inserted],
    }.get(scope, [*last, *renamed, *inserted])
    paged = [row for row in await caller.all("/v1/audit-log", **conditions, take=2) if row in rows]
    assert paged == rows
    for name, key in (
        ("tableName", "tableName"),
        ("action", "action"),
        ("requestId", "requestId"),
        ("actorUserId", "actorUserId"),
    ):
        for value in {row[key] for row in rows}:
            narrowed = await found(caller, **{**conditions, name: value})
            assert [row for row in narrowed if row in rows] == [row for row in rows if row[key] == value]
    assert [r for r in await found(caller, **{**conditions, "tableName": "agents", "rowId": agent}) if r in rows] == [
        row for row in rows if row["rowId"] == agent
    ]
    # From counts, to does not.
    edge = rows[3]["createdAt"]
    after = [row for row in await found(caller, **{**conditions, "from": edge}) if row in rows]
    before = [row for row in await found(caller, **{**conditions, "to": edge}) if row in rows]
    assert (after, before) == (rows[:4], rows[4:])


async def test_a_truncate_is_of_no_row_and_nobody(api: Api) -> None:
    with_a_table = "create table if not exists none (id text); "
    api.server.sql(
        with_a_table + "create trigger none_truncate after truncate on none execute function audit_change('usage')"
    )
    api.server.sql("truncate none; drop table none")
    [row] = await found(api.admin, action="truncate")
    assert (row["rowId"], row["userId"], row["actorUserId"], row["columns"]) == (None, None, None, [])
    assert row["actorRole"] == "postgres"


async def test_what_does_not_fit_is_named(api: Api) -> None:
    for query, place in (
        ("rowId=x", "tableName"),
        ("tableName=secrets", "tableName"),
        ("action=select", "action"),
        ("from=2026-11-01T00:00:00Z&to=2026-11-01T00:00:00Z", "to"),
        ("from=yesterday", "from"),
        ("userId=", "userId"),
        (f"cursor={encode_cursor(datetime.fromisoformat('2026-11-01T00:00:00Z'), 'agnt_1')}", "cursor"),
        (f"cursor={encode_cursor(datetime.fromisoformat('2026-11-01T00:00:00Z'), '9' * 19)}", "cursor"),
        ("cursor=x", "cursor"),
    ):
        refused = await api.alice.get(f"/v1/audit-log?{query}", expect=422)
        assert refused.places == [place], query
    for id_ in ("x", "-1", "0", "9" * 19, "9" * 30, "1.0", "%D9%A1"):
        await api.admin.get(f"/v1/audit-log/{id_}", expect=404)


async def test_a_key_without_the_permission_reads_nothing(api: Api) -> None:
    narrow = await api.server.caller(api.alice.user, "agents:read")
    await narrow.get("/v1/audit-log", expect=403)
    reader = await api.server.caller(api.alice.user, "audit-log:read")
    assert isinstance(await found(reader), list)
