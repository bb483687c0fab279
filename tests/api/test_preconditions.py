"""Entity tags: each change makes another one, and what was decided on an old one is not done."""

import asyncio
from typing import Any

import psycopg
import pytest

from crafely.api import ROUTES
from crafely.api.wire import Route, signature
from tests.api.conftest import Answer, Api, Client

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What makes one of each noun, a change that it takes, and another one.
NEW: dict[str, dict[str, Any]] = {
    "api-keys": {"name": "one"},
    "agents": {"name": "one", "instructions": ""},
    "threads": {"name": "one"},
    "packages": {"name": "one", "price": "1"},
    "user-subscriptions": {},
}
ROWS = [route for route in ROUTES if route.method == "GET" and signature(route).tagged]
TAKING = [route for route in ROUTES if signature(route).if_match]
# What of several ways to change a row does so: the body that it takes.
BODIES: dict[str, dict[str, Any]] = {
    "PATCH": {"json": {"name": "another"}},
    "POST /v1/api-keys/{id}/rotate": {"json": {"overlapSeconds": 60}},
}
PATCHES = [route for route in ROUTES if route.method == "PATCH"]


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


def noun(route: Route) -> str:
    return route.path.split("/")[2]


async def make(api: Api, noun: str) -> tuple[Client, str, Answer]:
    """One of a noun: who may change it, its address, and the answer that it was made with."""
    client = api.admin
    body = NEW[noun]
    if noun in {"packages", "user-subscriptions"}:
        package = await client.post("/v1/packages", {"name": f"{noun} of {api.admin.user}", "price": "1"})
        if noun == "packages":
            return client, package.headers["Location"], package
        body = {"packageId": package["id"]}
    made = await client.post(f"/v1/{noun}", body)
    return client, made.headers["Location"], made


async def test_the_tables_are_complete() -> None:
    assert {noun(route) for route in ROWS} == set(NEW)
    assert [route for route in PATCHES if route not in TAKING] == []
    assert {name(route) for route in TAKING} - {name(route) for route in PATCHES} >= {
        "DELETE /v1/api-keys/{id}",
        "DELETE /v1/agents/{id}",
        "DELETE /v1/threads/{id}",
        "POST /v1/api-keys/{id}/rotate",
        "POST /v1/user-subscriptions/{id}/cancel",
    }


@pytest.mark.parametrize("route", ROWS, ids=name)
async def test_a_row_has_a_tag_and_is_not_sent_again_to_who_has_it(api: Api, route: Route) -> None:
    client, address, made = await make(api, noun(route))
    tag = made.headers["ETag"]
    assert (await client.get(address)).headers["ETag"] == tag
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*", f' ,{tag} ,, W/"x" '):
        same = await client.get(address, expect=304, headers={"If-None-Match": known})
        assert (same.raw, same.headers["ETag"]) == (b"", tag)
        assert "Content-Type" not in same.headers
        await client.request("HEAD", address, expect=304, headers={"If-None-Match": known})
    for unknown in ('"other"', tag.replace('"', '"0', 1), f'"{tag[1:-1]}-1"', 'W/"0"'):
        assert (await client.get(address, headers={"If-None-Match": unknown}))["id"] == made["id"]


@pytest.mark.parametrize("route", TAKING, ids=name)
async def test_only_the_version_that_was_seen_is_changed(api: Api, route: Route) -> None:
    client, address, made = await make(api, noun(route))
    tag = made.headers["ETag"]
    path = route.path.replace("{id}", made["id"])
    options = BODIES.get(name(route), BODIES.get(route.method, {}))
    for stale in ('"0"', f"W/{tag}", '"nonsense"', f'"{int(tag[1:-1], 16) - 1:x}"', '"ffffffffffffffff"', '""'):
        refused = await client.request(route.method, path, expect=412, headers={"If-Match": stale}, **options)
        assert refused["code"] == "precondition_failed"
        assert (await client.get(address)).headers["ETag"] == tag
    done = await client.request(route.method, path, expect=route.status, headers={"If-Match": f'"0", {tag}'}, **options)
    if route.status != 204:
        assert done.headers["ETag"] != tag
    if route.method == "PATCH":
        assert (await client.get(address)).headers["ETag"] == done.headers["ETag"]
        await client.request(route.method, path, expect=412, headers={"If-Match": tag}, **options)
        await client.request(route.method, path, expect=200, headers={"If-Match": "*"}, **options)


@pytest.mark.parametrize("route", TAKING, ids=name)
async def test_what_is_not_there_is_404_whatever_version_is_named(api: Api, route: Route) -> None:
    options = BODIES.get(name(route), BODIES.get(route.method, {}))
    for tag in ('"0"', "*"):
        path = route.path.replace("{id}", "nothing")
        await api.admin.request(route.method, path, expect=404, headers={"If-Match": tag}, **options)


@pytest.mark.parametrize("bad", ["0", '"0', 'w/"0"', '"a""b"', '"a b"', "*, *", '*, "a"', "", ","])
async def test_what_is_no_list_of_tags_is_refused(api: Api, bad: str) -> None:
    _, address, _ = await make(api, "agents")
    changed = {"name": "never"}
    refused = await api.admin.patch(address, changed, expect=422, headers={"If-Match": bad})
    assert refused.places == ["If-Match"]
    for query in ("", "?include=threads"):
        refused = await api.admin.get(address + query, expect=422, headers={"If-None-Match": bad})
        assert refused.places == ["If-None-Match"]


async def test_a_list_in_two_lines_is_one_list(api: Api) -> None:
    client, address, made = await make(api, "agents")
    lines = [("If-Match", '"0"'), ("If-Match", made.headers["ETag"])]
    await client.patch(address, {"name": "x"}, headers=lines)


async def test_an_operation_without_versions_says_so_and_does_nothing(api: Api) -> None:
    for path, body in (("/v1/agents", NEW["agents"]), ("/v1/usage", {})):
        refused = await api.alice.post(path, body, expect=422, headers={"If-Match": '"0"'})
        assert refused.places == ["If-Match"]
    assert await api.alice.all("/v1/agents") == []
    # Where nothing is done nothing can be spoilt.
    await api.alice.get("/v1/agents", headers={"If-Match": '"0"', "If-None-Match": "*"})


async def test_an_agent_with_its_threads_is_another_answer(api: Api) -> None:
    client, address, made = await make(api, "agents")
    shown = await client.get(f"{address}?include=threads", headers={"If-None-Match": made.headers["ETag"]})
    assert "ETag" not in shown.headers


async def test_a_use_of_a_key_is_another_answer_but_no_other_version(api: Api) -> None:
    client, address, made = await make(api, "api-keys")
    tag = made.headers["ETag"]
    api.server.sql("update api_keys set last_used_at = '2026-01-01Z' where id = %s", made["id"])
    used = await client.get(address, headers={"If-None-Match": tag})
    assert used.headers["ETag"] != tag
    await client.get(address, expect=304, headers={"If-None-Match": used.headers["ETag"]})
    await client.patch(address, {"name": "x"}, headers={"If-Match": tag})
    await client.patch(address, {"name": "y"}, expect=412, headers={"If-Match": tag})
    await client.patch(address, {"name": "y"}, expect=412, headers={"If-Match": used.headers["ETag"]})


async def test_a_change_to_what_it_is_leaves_the_tag(api: Api) -> None:
    client, address, made = await make(api, "agents")
    assert (await client.patch(address, {"name": "one"})).headers["ETag"] == made.headers["ETag"]


async def test_of_many_who_saw_the_same_one_changes_it(api: Api) -> None:
    client, address, made = await make(api, "threads")

    async def change(number: int) -> int:
        headers = {"If-Match": made.headers["ETag"], "Authorization": f"Bearer {client.token}"}
        url = f"http://{api.server.address[0]}:{api.server.address[1]}{address}"
        while True:
            async with client._http.patch(url, json={"name": f"of {number}"}, headers=headers) as answer:
                # Twenty share a few connections: on a busy machine one may be told to come back.
                if answer.status != 503:
                    return answer.status

    statuses = await asyncio.gather(*map(change, range(20)))
    assert sorted(statuses) == [200] + [412] * 19


async def test_no_two_versions_of_a_row_have_one_tag(api: Api) -> None:
    _, address, made = await make(api, "agents")
    update = "update agents set name = %s where id = %s returning updated_at"
    with psycopg.connect(api.server.url) as connection:
        # As if the clock had been set back by a day.
        connection.execute("set session_replication_role = replica")
        connection.execute("update agents set updated_at = now() + interval '1 day' where id = %s", [made["id"]])
        connection.execute("set session_replication_role = origin")
        stamps = [connection.execute(update, [letter, made["id"]]).fetchall()[0][0] for letter in "abc"]
    assert len(set(stamps)) == 3
    assert stamps == sorted(stamps)
    assert (await api.admin.get(address))["updatedAt"] > made["updatedAt"]


async def test_a_thread_for_an_agent_that_is_none_is_422_where_the_version_is_right(api: Api) -> None:
    client, address, made = await make(api, "threads")
    body = {"agentId": "agnt_nothing"}
    await client.patch(address, body, expect=412, headers={"If-Match": '"0"'})
    refused = await client.patch(address, body, expect=422, headers={"If-Match": made.headers["ETag"]})
    assert refused.places == ["/agentId"]


async def test_an_ended_subscription_is_a_conflict_whatever_version_is_named(api: Api) -> None:
    client, address, made = await make(api, "user-subscriptions")
    await client.post(f"{address}/cancel", expect=200, headers={"If-Match": made.headers["ETag"]})
    refused = await client.post(f"{address}/cancel", expect=409, headers={"If-Match": made.headers["ETag"]})
    assert "cancelled" in refused["detail"]
