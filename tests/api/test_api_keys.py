"""``/v1/api-keys``, end to end."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from crafely.auth import keys
from tests.api.conftest import Api

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_new_key_works_and_its_secret_is_shown_once(api: Api) -> None:
    until = "2999-12-31T23:59:59Z"
    body = {"name": "ci", "permissions": ["agents:read"], "expiresAt": until, "rateLimit": 600}
    made = await api.alice.post("/v1/api-keys", body)
    parsed = keys.parse(made["key"])
    assert parsed is not None
    assert made["keyId"] == parsed.key_id
    assert made["key"].startswith(made["prefix"])
    assert made.headers["Location"] == f"/v1/api-keys/{made['id']}"
    assert {name: made[name] for name in body} == body
    assert made["active"] is True
    assert made["usageId"] is None

    caller = api.server.with_token(made["key"])
    await caller.get("/v1/agents")
    await caller.get("/v1/threads", expect=403)
    # Afterwards nothing shows more than the prefix.
    for path in ("/v1/api-keys", made.headers["Location"]):
        assert parsed.secret.encode() not in (await api.alice.get(path)).raw
    stored = api.server.sql("select api_keys::text from api_keys where id = %s", made["id"])
    assert parsed.secret not in stored[0][0]
    assert "$argon2id$" in stored[0][0]


async def test_a_key_needs_nothing_and_may_do_nothing(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {})
    assert made["permissions"] == []
    caller = api.server.with_token(made["key"])
    assert (await caller.get("/v1/me"))["permissions"] == []
    await caller.get("/v1/agents", expect=403)


async def test_a_key_and_its_opening_usage_are_stored_together(api: Api) -> None:
    record = {"provider": "openai", "model": "gpt-4", "type": "chat", "tokensTotal": 0, "cost": "0"}
    made = await api.alice.post("/v1/api-keys", {"name": "opened", "usage": record})
    assert made.headers["Location"] == f"/v1/api-keys/{made['id']}"
    listed = (await api.alice.get("/v1/usage"))["data"]
    assert [(row["id"], row["apiKeyId"], row["model"]) for row in listed] == [(made["usageId"], made["id"], "gpt-4")]


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"cost": "-1"}, "/usage/cost"),
        ({"apiKeyId": "key_of_another"}, "/usage/apiKeyId"),
        ({"createdAt": "1970-01-01T00:00:00Z"}, "/usage/createdAt"),
        ({"tokensIn": 2**31 - 1, "tokensOut": 1}, "/usage/tokensIn"),
    ],
)
async def test_where_the_opening_usage_cannot_be_stored_there_is_no_key_either(
    api: Api, record: dict[str, Any], place: str
) -> None:
    refused = await api.alice.post("/v1/api-keys", {"name": "half", "usage": record}, expect=422)
    assert refused.places == [place]
    assert len(await api.alice.all("/v1/api-keys")) == 1


async def test_an_opening_usage_that_was_counted_before_makes_no_key(api: Api) -> None:
    await api.alice.post("/v1/usage", {"eventId": "once"})
    refused = await api.alice.post("/v1/api-keys", {"usage": {"eventId": "once"}}, expect=409)
    assert refused.places == ["/usage/eventId"]
    assert len(await api.alice.all("/v1/api-keys")) == 1


async def test_an_opening_usage_takes_the_permission_to_record_usage(api: Api) -> None:
    caller = await api.server.caller("frank", "keys:write")
    await caller.post("/v1/api-keys", {"name": "plain"})
    refused = await caller.post("/v1/api-keys", {"name": "opened", "usage": {}}, expect=403)
    assert "usage:write" in refused["detail"]


async def test_the_database_rolls_the_key_back_when_it_refuses_the_usage(api: Api) -> None:
    # Python lets this record through; a trigger refuses it after the key's row was written in the same transaction.
    api.server.sql(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " if new.model = 'refused' then raise exception 'no' using errcode = '23514'; end if; return new; end $$"
    )
    api.server.sql("create trigger refuse before insert on usage_daily for each row execute function refuse()")
    await api.alice.post("/v1/api-keys", {"name": "half", "usage": {"model": "refused"}}, expect=422)
    assert len(await api.alice.all("/v1/api-keys")) == 1
    assert await api.alice.all("/v1/usage") == []


async def test_keys_are_listed_newest_first_and_by_whether_they_are_active(api: Api) -> None:
    made = [(await api.alice.post("/v1/api-keys", {"name": f"key {number}"}))["id"] for number in range(3)]
    await api.alice.delete(f"/v1/api-keys/{made[1]}")
    own = (await api.alice.get("/v1/me"))["apiKeyId"]

    async def listed(**params: str) -> list[str]:
        return [row["id"] for row in await api.alice.all("/v1/api-keys", **params)]

    assert await listed() == [made[2], made[1], made[0], own]
    assert await listed(active="true") == [made[2], made[0], own]
    assert await listed(active="false") == [made[1]]
    assert await listed(take="1") == [made[2], made[1], made[0], own]


async def test_a_change_changes_what_was_sent_and_nothing_else(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {"name": "old", "permissions": ["usage:read"], "rateLimit": 5})
    path = f"/v1/api-keys/{made['id']}"
    changed = await api.alice.patch(path, {"name": "new"})
    before = (await api.alice.get(path)).body
    assert changed.body == before
    assert {**before, "name": "old", "updatedAt": made["updatedAt"]} == {
        name: value for name, value in made.body.items() if name not in {"key", "usageId"}
    }
    assert before["updatedAt"] > made["updatedAt"]
    emptied = await api.alice.patch(path, {"name": None, "rateLimit": None, "permissions": []})
    assert (emptied["name"], emptied["rateLimit"], emptied["permissions"]) == (None, None, [])
    assert (await api.alice.patch(path, {})).body == emptied.body


async def test_a_changed_permission_counts_at_once(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {"permissions": ["agents:read"]})
    caller = api.server.with_token(made["key"])
    await caller.get("/v1/agents")
    await api.alice.patch(f"/v1/api-keys/{made['id']}", {"permissions": ["threads:read"]})
    await caller.get("/v1/agents", expect=403)
    await caller.get("/v1/threads")


async def test_revoking_ends_a_key_for_good_and_twice_is_once(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {"permissions": ["*"]})
    path = f"/v1/api-keys/{made['id']}"
    await api.alice.delete(path)
    await api.alice.delete(path)
    assert (await api.alice.get(path))["active"] is False
    assert (await api.alice.patch(path, {"name": "back?"}))["active"] is False
    await api.alice.patch(path, {"active": True}, expect=422)
    await api.server.with_token(made["key"]).get("/v1/me", expect=401)


@pytest.mark.parametrize("wanted", [["*"], ["admin"], ["agents:read", "agents:write"], ["documents:read"]])
async def test_nobody_hands_out_more_than_they_hold(api: Api, wanted: list[str]) -> None:
    caller = await api.server.caller(api.alice.user, "keys:write", "agents:read")
    refused = await caller.post("/v1/api-keys", {"permissions": wanted}, expect=403)
    assert refused["code"] == "insufficient_permissions"
    weak = await caller.post("/v1/api-keys", {"permissions": ["agents:read"]})
    await caller.patch(f"/v1/api-keys/{weak['id']}", {"permissions": wanted}, expect=403)
    assert (await api.alice.get(f"/v1/api-keys/{weak['id']}"))["permissions"] == ["agents:read"]


async def test_a_wildcard_hands_out_everything_but_admin(api: Api) -> None:
    await api.alice.post("/v1/api-keys", {"permissions": ["*", "documents:read"]})
    await api.alice.post("/v1/api-keys", {"permissions": ["admin"]}, expect=403)
    await api.admin.post("/v1/api-keys", {"permissions": ["admin"]})


async def test_a_key_that_holds_more_than_its_changer_is_not_changed(api: Api) -> None:
    strong = await api.alice.post("/v1/api-keys", {"permissions": ["agents:write"]})
    caller = await api.server.caller(api.alice.user, "keys:write")
    refused = await caller.patch(f"/v1/api-keys/{strong['id']}", {"name": "mine"}, expect=403)
    assert "holds permissions that the caller does not" in refused["detail"]


async def test_a_key_with_an_end_ends(api: Api) -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    refused = await api.alice.post("/v1/api-keys", {"expiresAt": past}, expect=422)
    assert refused.places == ["/expiresAt"]
    own = (await api.alice.get("/v1/me"))["apiKeyId"]
    await api.alice.patch(f"/v1/api-keys/{own}", {"expiresAt": past}, expect=422)
    # In another zone, it is the same moment.
    changed = await api.alice.patch(f"/v1/api-keys/{own}", {"expiresAt": "2999-01-01T02:00:00+02:00"})
    assert changed["expiresAt"] == "2999-01-01T00:00:00Z"
    assert (await api.alice.patch(f"/v1/api-keys/{own}", {"expiresAt": None}))["expiresAt"] is None


@pytest.mark.parametrize("offset", [-23, -16, 16, 19, 23])
async def test_an_offset_of_any_hours_is_a_time(api: Api, offset: int) -> None:
    """PostgreSQL itself takes fifteen at most: wherever a time is sent, it is the same moment in UTC."""
    zone = timezone(timedelta(hours=offset, minutes=21 if offset > 0 else 0))
    later, now = datetime(2362, 8, 4, 11, 42, tzinfo=UTC), datetime.now(UTC)
    sent = {"expiresAt": later.astimezone(zone).isoformat()}
    made = await api.alice.post("/v1/api-keys", sent)
    changed = await api.alice.patch(f"/v1/api-keys/{made['id']}", sent)
    assert made["expiresAt"] == changed["expiresAt"] == "2362-08-04T11:42:00Z"
    used = {"createdAt": now.astimezone(zone).isoformat()}
    for body in (used, [used, {}]):
        assert (await api.alice.post("/v1/usage", body))["invalid"] == 0
    assert now.isoformat().replace("+00:00", "Z") in [row["createdAt"] for row in await api.alice.all("/v1/usage")]
