"""A key that takes the place of another, and keys that end: by a rotation, by their time, and as a family."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from crafely.auth.families import revoke_family
from crafely.db.session import Database, Identity
from tests.api.conftest import Answer, Api, Client

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def rotate(client: Client, made: Answer, overlap: int = 600, **options: Any) -> Answer:
    return await client.post(f"/v1/api-keys/{made['id']}/rotate", {"overlapSeconds": overlap}, **options)


async def ends(api: Api, made: Answer) -> datetime:
    return datetime.fromisoformat((await api.alice.get(f"/v1/api-keys/{made['id']}"))["expiresAt"])


async def works(api: Api, made: Answer) -> bool:
    answer = (await api.alice.post("/v1/api-keys/verify", {"key": made["key"]}, expect=200)).body
    await api.server.with_token(made["key"]).get("/v1/me", expect=200 if answer["valid"] else 401)
    return bool(answer["valid"])


async def test_a_new_key_takes_over_what_the_old_one_had_and_both_work_for_a_while(api: Api) -> None:
    body = {"name": "ci", "permissions": ["agents:read"], "expiresAt": "2999-12-31T23:59:59Z", "rateLimit": 600}
    old = await api.alice.post("/v1/api-keys", body)
    assert old["rotatedFrom"] is None
    begin = datetime.now(UTC)
    new = await rotate(api.alice, old)
    assert {name: new[name] for name in body} == body
    assert new["rotatedFrom"] == old["id"]
    assert new.headers["Location"] == f"/v1/api-keys/{new['id']}"
    assert (new["keyId"], new["key"]) != (old["keyId"], old["key"])
    assert new["key"].startswith(new["prefix"])
    end = timedelta(seconds=600)
    assert begin + end <= await ends(api, old) <= datetime.now(UTC) + end
    assert [await works(api, one) for one in (old, new)] == [True, True]
    shown = await api.alice.get(new.headers["Location"])
    assert shown["rotatedFrom"] == old["id"]
    assert new["key"].encode() not in shown.raw
    listed = {row["id"]: row["rotatedFrom"] for row in await api.alice.all("/v1/api-keys")}
    assert (listed[new["id"]], listed[old["id"]]) == (old["id"], None)


async def test_an_old_key_never_ends_later_than_it_would_have(api: Api) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=100)).replace(microsecond=0)
    old = await api.alice.post("/v1/api-keys", {"expiresAt": soon.isoformat()})
    new = await rotate(api.alice, old, 2_592_000)
    assert await ends(api, old) == soon
    assert await ends(api, new) == soon


async def test_without_an_overlap_the_old_key_ends_with_the_answer(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    assert await works(api, old)
    new = await rotate(api.alice, old, 0)
    assert [await works(api, one) for one in (old, new)] == [False, True]
    assert (await api.alice.get(f"/v1/api-keys/{old['id']}"))["active"] is False


async def test_at_the_end_of_the_overlap_the_old_key_ends_though_it_is_remembered(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    assert await works(api, old)
    await rotate(api.alice, old, 1)
    for _ in range(300):
        # One request at a time: between two of them the end may come.
        if not (await api.alice.post("/v1/api-keys/verify", {"key": old["key"]}, expect=200))["valid"]:
            break
        await asyncio.sleep(0.1)
    assert not await works(api, old)
    assert datetime.now(UTC) >= await ends(api, old)


async def test_a_key_can_rotate_itself(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {"permissions": ["keys:write"]})
    new = await rotate(api.server.with_token(old["key"]), old)
    await rotate(api.server.with_token(new["key"]), new, 0)
    assert [await works(api, one) for one in (old, new)] == [True, False]


@pytest.mark.parametrize("wanted", [["*"], ["agents:read", "agents:write"], ["documents:read"]])
async def test_nobody_rotates_into_more_than_they_hold(api: Api, wanted: list[str]) -> None:
    strong = await api.alice.post("/v1/api-keys", {"permissions": wanted})
    caller = await api.server.caller(api.alice.user, "keys:write", "agents:read")
    refused = await rotate(caller, strong, expect=403)
    assert refused["code"] == "insufficient_permissions"
    assert b"crf_" not in refused.raw
    assert [row["rotatedFrom"] for row in await api.alice.all("/v1/api-keys")] == [None] * 3
    assert (await api.alice.get(f"/v1/api-keys/{strong['id']}"))["expiresAt"] is None


async def test_a_wildcard_does_not_rotate_an_administrators_key(api: Api) -> None:
    strong = await api.admin.post("/v1/api-keys", {"permissions": ["admin"]})
    wildcard = await api.server.caller(api.admin.user, "*")
    await rotate(wildcard, strong, expect=403)
    await rotate(api.admin, strong)


@pytest.mark.parametrize("end", ["active = false", "expires_at = now() - interval '1 second'"])
async def test_a_key_that_has_ended_is_not_rotated(api: Api, end: str) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    api.server.sql(f"update api_keys set {end} where id = %s", old["id"])  # noqa: S608 - of this file
    refused = await rotate(api.alice, old, expect=409)
    assert refused["detail"] == ("The key is revoked." if "active" in end else "The key has expired.")
    assert len(await api.alice.all("/v1/api-keys")) == 2


async def test_of_many_rotations_at_once_one_is_done(api: Api) -> None:
    for overlap in (600, 0):
        old = await api.alice.post("/v1/api-keys", {})
        url = f"/v1/api-keys/{old['id']}/rotate"

        async def one(url: str = url, overlap: int = overlap) -> int:
            headers = {"Authorization": f"Bearer {api.alice.token}"}
            async with api.alice._http.post(url, json={"overlapSeconds": overlap}, headers=headers) as answer:
                return answer.status

        assert sorted(await asyncio.gather(*[one() for _ in range(8)])) == [201] + [409] * 7
        made = [row for row in await api.alice.all("/v1/api-keys") if row["rotatedFrom"] == old["id"]]
        assert len(made) == 1
    again = await rotate(api.alice, old, expect=409)
    assert again["detail"] == "The key is revoked."


async def test_a_key_is_replaced_once_and_who_lost_the_new_one_rotates_that(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    lost = await rotate(api.alice, old)
    refused = await rotate(api.alice, old, expect=409)
    assert refused["detail"] == "the key has been replaced; rotate the one that did"
    await rotate(api.alice, lost, 0)
    assert not await works(api, lost)


async def test_a_family_ends_together_whoever_of_it_is_named(api: Api) -> None:
    for named in (0, 2):
        family = [await api.alice.post("/v1/api-keys", {})]
        for _ in range(3):
            family.append(await rotate(api.alice, family[-1]))
        stranger = await api.alice.post("/v1/api-keys", {})
        assert [await works(api, one) for one in family] == [True] * 4
        path = f"/v1/api-keys/{family[named]['id']}?family=true"
        await api.bob.delete(path, expect=404)
        await api.alice.delete(path, expect=412, headers={"If-Match": '"0"'})
        assert [await works(api, one) for one in family] == [True] * 4
        await api.alice.delete(path)
        assert [await works(api, one) for one in family] == [False] * 4
        assert await works(api, stranger)
        await api.alice.delete(path)


async def test_alone_a_key_takes_nobody_along(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    new = await rotate(api.alice, old)
    await api.alice.delete(f"/v1/api-keys/{new['id']}")
    assert [await works(api, one) for one in (old, new)] == [True, False]


async def test_a_key_that_is_being_made_does_not_escape_the_end_of_its_family(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    database = Database(api.server.url, size=2, pool_timeout=5, statement_timeout=10, roles=("crafely_app",))
    await database.open()
    session = database.session("crafely_app", Identity(api.alice.user))
    with psycopg.connect(api.server.url) as rotation:
        # As sql/api_keys/rotate.sql does it, not yet committed.
        rotation.execute("select from api_keys where id = %s for update", [old["id"]])
        rotation.execute(
            "insert into api_keys (id, key_id, hashed_key, user_id, rotated_from)"
            " select id || '_2', key_id || '_2', '', user_id, id from api_keys where id = %s",
            [old["id"]],
        )

        async def end() -> list[str]:
            async with session.transaction() as transaction:
                return await revoke_family(transaction, id=old["id"], user_id=api.alice.user)

        ending = asyncio.create_task(end())
        await until(lambda: api.server.sql("select 1 from pg_locks where not granted and locktype = 'transactionid'"))
        rotation.commit()
    assert sorted(await ending) == [old["keyId"], f"{old['keyId']}_2"]
    family = [row["active"] for row in await api.alice.all("/v1/api-keys") if row["id"].startswith(old["id"])]
    assert family == [False, False]
    await database.close()


async def until(seen: Callable[[], object]) -> None:
    for _ in range(500):
        if seen():
            return
        await asyncio.sleep(0.02)
    pytest.fail("never seen")


async def test_a_rotation_is_audited_with_both_keys_and_no_secret(api: Api) -> None:
    old = await api.alice.post("/v1/api-keys", {})
    new = await rotate(api.alice, old)
    rows = api.server.sql(
        "select row_id, action, old::text, new::text from audit_log where row_id = any(%s) order by id",
        [old["id"], new["id"]],
    )
    assert sorted((row_id, action) for row_id, action, *_ in rows) == sorted(
        [(old["id"], "insert"), (old["id"], "update"), (new["id"], "insert")]
    )
    assert "argon2" not in str(rows)
    assert f'"rotated_from": "{old["id"]}"' in str(rows)


async def test_lists_tell_keys_whose_end_has_come(api: Api) -> None:
    own = (await api.alice.get("/v1/me"))["apiKeyId"]
    made = [(await api.alice.post("/v1/api-keys", {}))["id"] for _ in range(4)]
    api.server.sql("update api_keys set expires_at = now() - interval '1 second' where id = any(%s)", made[:2])
    api.server.sql("update api_keys set expires_at = now() + interval '1 hour' where id = %s", made[2])
    api.server.sql("update api_keys set active = false where id = any(%s)", [made[1], made[3]])

    async def listed(**params: str) -> list[str]:
        return [row["id"] for row in await api.alice.all("/v1/api-keys", **params)]

    assert await listed(expired="true") == [made[1], made[0]]
    assert await listed(expired="false") == [made[3], made[2], own]
    assert await listed(active="true", expired="false") == [made[2], own]
    assert await listed(active="true", expired="true") == [made[0]]
    assert await listed(active="false", expired="true") == [made[1]]
    assert await listed(active="false", expired="false", take="1") == [made[3]]
