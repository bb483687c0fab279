"""``/v1/audit-log``, end to end: who did what shows up, to whom it may."""

import asyncio
from datetime import datetime
from typing import Any

import msgspec
import pytest

from crafely.api import ROUTES
from crafely.api.pages import encode_cursor
from crafely.auth.hashing import Hasher
from tests.api.conftest import SETTINGS, Api, Client

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def an_agent(caller: Client, request_id: str, **fields: Any) -> str:
    body = {"name": "one", "instructions": "", **fields}
    made = await caller.post("/v1/agents", body, headers={"X-Request-Id": request_id})
    return str(made["id"])


async def found(caller: Client, **params: Any) -> list[Any]:
    """What a list says, without the key that the test's user was given before all requests."""
    rows = await caller.all("/v1/audit-log", **params)
    return [row for row in rows if row["tableName"] != "api_keys" or row["requestId"] is not None]


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


async def test_whatever_a_request_changes_is_signed_with_its_id_its_user_and_its_key(api: Api) -> None:
    """Each route that changes something, once; a new one is missed here until it is added."""
    key = (await api.alice.get("/v1/me"))["apiKeyId"]
    package = (await api.admin.post("/v1/packages", {"name": f"of {api.alice.user}", "price": "1"}))["id"]
    ids: dict[str, str] = {"/v1/packages": package}
    bodies: dict[str, Any] = {
        "POST /v1/api-keys": {"name": "one", "usage": {"model": "m"}},
        "POST /v1/api-keys/verify": {"key": api.bob.token},
        "POST /v1/api-keys/{id}/rotate": {"overlapSeconds": 0},
        "POST /v1/agents": {"name": "one", "instructions": ""},
        "POST /v1/threads": {"name": "one"},
        "POST /v1/packages": {"name": f"another of {api.alice.user}", "price": "1"},
        "POST /v1/user-subscriptions": {"packageId": package},
        "POST /v1/usage": {"model": "m"},
    }
    order = ["POST", "PATCH", "DELETE"]
    writes = [route for route in ROUTES if route.method != "GET"]
    writes.sort(key=lambda route: ("{id}" in route.path, order.index(route.method), route.path))
    last = api.server.sql("select coalesce(max(id), 0) from audit_log")[0][0]
    silent = {"POST /v1/api-keys/verify", "POST /v1/usage"}
    for number, route in enumerate(writes):
        name, noun = f"{route.method} {route.path}", "/".join(route.path.split("/")[:3])
        if route.path.endswith("/restore"):
            await api.alice.delete(f"{noun}/{ids[noun]}")
        elif route.method == "DELETE":
            ids[noun] = (await api.alice.post(noun, bodies[f"POST {noun}"]))["id"]
        caller = api.admin if noun == "/v1/packages" else api.alice
        request = f"signed-{number}-{api.alice.user}"
        body = {"name": "new"} if route.method == "PATCH" and noun != "/v1/packages" else bodies.get(name, {})
        body = {"price": "2"} if name == "PATCH /v1/packages/{id}" else body
        answer = await caller.request(
            route.method,
            route.path.replace("{id}", ids.get(noun, "")),
            expect=route.status,
            headers={"X-Request-Id": request},
            **({"json": body} if body else {}),
        )
        if route.method == "POST" and route.path == noun and name not in silent:
            ids[noun] = answer["id"]
        rows = api.server.sql(
            "select actor_user_id, actor_api_key_id = %s from audit_log where request_id = %s", key, request
        )
        who = (caller.user, caller is api.alice)
        assert (name, set(rows)) == (name, set() if name in silent else {who})
    unsigned = "select table_name from audit_log where id > %s and (request_id is null or actor_user_id is null)"
    assert api.server.sql(unsigned, last) == []


async def test_a_hash_that_is_renewed_is_signed_with_the_request_that_caused_it(api: Api) -> None:
    caller = await api.server.caller(api.alice.user, "*")
    *_, key_id, secret = caller.token.split("_")
    hasher = Hasher(msgspec.structs.replace(SETTINGS, argon2_memory_kib=16))
    hashed = await hasher.hash(secret[:32])
    hasher.close()
    api.server.sql("update api_keys set hashed_key = %s where key_id = %s", hashed, key_id)
    request = f"renewed-{api.alice.user}"
    await caller.get("/v1/me", headers={"X-Request-Id": request})
    [row] = await found_of(api, request)
    assert (row["actorUserId"], row["userId"], row["columns"]) == (caller.user, caller.user, ["hashed_key"])
    assert row["actorApiKeyId"] == row["rowId"]


async def found_of(api: Api, request_id: str) -> list[Any]:
    """What a request changes a moment after its answer."""
    async with asyncio.timeout(30):
        while not (rows := await found(api.admin, requestId=request_id)):  # noqa: ASYNC110 - a database raises no event
            await asyncio.sleep(0.02)
    return list(rows)


async def test_an_encrypted_text_is_read_by_its_owner_alone(api: Api) -> None:
    """Not in the trail in clear; and what no key opens is shown as it is stored."""
    before, after = "Review the SQL.", "Then explain it."
    agent = await an_agent(api.alice, "sealed", instructions=before, name="crafely:1:x:AAAA")
    await api.alice.patch(f"/v1/agents/{agent}", {"instructions": after})
    updated, inserted = await found(api.alice, tableName="agents", rowId=agent)
    entry = await api.alice.get(f"/v1/audit-log/{updated['id']}")
    assert (entry["old"], entry["new"]) == ({"instructions": before}, {"instructions": after})
    entry = await api.alice.get(f"/v1/audit-log/{inserted['id']}")
    assert (entry["new"]["instructions"], entry["new"]["name"]) == (before, "crafely:1:x:AAAA")
    seen = await api.admin.get(f"/v1/audit-log/{updated['id']}")
    assert before not in seen.raw.decode()
    assert seen["old"]["instructions"].startswith("crafely:1:")
    clear = "select count(*) from audit_log where row_id = %s and (new || coalesce(old, '{}'))::text like %s"
    assert api.server.sql(clear, agent, f"%{before}%") == [(0,)]


async def test_a_change_that_nobody_signed_is_of_no_actor(api: Api) -> None:
    agent = await an_agent(api.alice, "signed")
    api.server.sql("update agents set name = 'by hand' where id = %s", agent)
    by_hand, signed = await found(api.alice)
    assert (by_hand["actorUserId"], by_hand["requestId"], by_hand["actorRole"]) == (None, None, "postgres")
    assert await found(api.alice, actorUserId=api.alice.user) == [signed]
    assert await found(api.admin, userId=api.alice.user, actorUserId=api.alice.user) == [signed]
