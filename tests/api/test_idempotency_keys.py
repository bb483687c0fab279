"""Idempotency-Key: whatever happens to a request or its answer, sent again it is answered again and done once."""

import asyncio
import base64
import http.client
import json
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from crafely import keyring
from crafely.api import ROUTES
from crafely.api.wire import Route
from crafely.cli.keys import make as make_key
from crafely.config import Settings
from tests.api.conftest import Answer, Api, Server, introduce, serving
from tests.auth.conftest import Signer
from tests.cli.conftest import Serving
from tests.cli.conftest import folder as folder  # noqa: PLC0414 - a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

POSTS = [route for route in ROUTES if route.method == "POST"]
ONCE = [route for route in POSTS if route.once]
SAME = ("Location", "ETag", "Content-Type")
RING = "k1:" + base64.b64encode(bytes(range(32))).decode()


def name(route: Route) -> str:
    return route.path


class Request:
    """A request that a route takes once, and how often it has been done."""

    def __init__(self, api: Api, route: Route, path: str, body: Any, counting: str) -> None:
        self.client, self.route, self.path, self.body, self._counting = api.admin, route, path, body, counting
        self._api = api

    async def __call__(self, key: str, *, expect: int = 0, **options: Any) -> Answer:
        body = {} if self.body is None else {"json": options.pop("json", self.body)}
        headers = {"Idempotency-Key": key}
        expect = expect or self.route.status
        return await self.client.request("POST", self.path, expect=expect, headers=headers, **body, **options)

    def done(self) -> int:
        return int(self._api.server.sql(self._counting, self.client.user)[0][0])


async def request(api: Api, route: Route) -> Request:
    """One for each route. A new route without it is a KeyError here."""
    noun, user = route.path.split("/")[2], api.admin.user
    counting = "select count(*) from {} where user_id = %s"
    trail = "select count(*) from audit_log where user_id = %s and action = 'update' and table_name = '{}'"
    path, body = route.path, cast(Any, None)
    match path:
        case "/v1/api-keys":
            body = {"name": "once", "usage": {"model": "m"}}
            counting = counting.format("usage")
        case "/v1/agents":
            body, counting = {"name": "once", "instructions": "x"}, counting.format("agents")
        case "/v1/threads":
            body, counting = {"name": "once", "storageId": f"of {user}"}, counting.format("threads")
        case "/v1/packages":
            body, counting = (
                {"name": f"of {user}", "price": "1"},
                "select count(*) from packages where name = 'of ' || %s",
            )
        case "/v1/user-subscriptions":
            package = await api.admin.post("/v1/packages", {"name": f"{user} subscribes", "price": "1"})
            body, counting = {"packageId": package["id"]}, counting.format("user_subscriptions")
        case "/v1/usage":
            body, counting = [{"model": "m"}, {"currency": "EURO"}], counting.format("usage")
        case _:
            made = await prepare(api, noun, path.rpartition("/")[2])
            path = path.replace("{id}", made)
            if path.endswith("/rotate"):
                body = {"overlapSeconds": 60}
            counting = trail.format(noun.replace("-", "_"))
    return Request(api, route, path, body, counting)


async def prepare(api: Api, noun: str, verb: str) -> str:
    bodies: dict[str, Any] = {"agents": {"name": "x", "instructions": ""}, "threads": {"name": "x"}, "api-keys": {}}
    if verb == "cancel":
        package = await api.admin.post("/v1/packages", {"name": f"{api.admin.user} cancels", "price": "1"})
        bodies["user-subscriptions"] = {"packageId": package["id"]}
    made = await api.admin.post(f"/v1/{noun}", bodies[noun])
    if verb == "restore":
        await api.admin.delete(f"/v1/{noun}/{made['id']}")
    return str(made["id"])


async def test_every_post_is_done_once_but_the_one_that_does_nothing() -> None:
    assert [route.path for route in POSTS if route not in ONCE] == ["/v1/api-keys/verify"]


@pytest.mark.parametrize("route", ONCE, ids=name)
async def test_sent_again_it_is_answered_again_and_not_done_again(api: Api, route: Route) -> None:
    sends = await request(api, route)
    before = sends.done()
    first = await sends("order 1")
    assert "Idempotency-Replayed" not in first.headers
    assert sends.done() == before + 1
    for _ in range(2):
        again = await sends("order 1")
        assert again.headers["Idempotency-Replayed"] == "true"
        assert [again.headers.get(one) for one in SAME] == [first.headers.get(one) for one in SAME]
        secret = {"key": None} if "key" in first.body else {}
        assert again.body == {**first.body, **secret}
        assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert sends.done() == before + 1
    stored = api.server.sql("select k::text from idempotency_keys k where user_id = %s", api.admin.user)
    assert len(stored) == 1
    assert "crf_test_" not in stored[0][0].replace(str(first.body.get("prefix")), "")


@pytest.mark.parametrize("route", ONCE, ids=name)
async def test_of_twenty_at_once_one_is_done_and_nobody_waits(api: Api, route: Route) -> None:
    sends = await request(api, route)
    before = sends.done()

    async def one() -> tuple[int, str | None, str | None]:
        options = {} if sends.body is None else {"json": sends.body}
        headers = {"Authorization": f"Bearer {api.admin.token}", "Idempotency-Key": "k"}
        async with api.admin._http.post(sends.path, headers=headers, **options) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Idempotency-Replayed"), answer.headers.get("Retry-After")

    answers = await asyncio.gather(*[one() for _ in range(20)])
    assert answers.count((route.status, None, None)) == 1
    assert set(answers) <= {(route.status, None, None), (route.status, "true", None), (409, None, "1")}
    assert sends.done() == before + 1
    assert (await sends("k")).headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("route", ONCE, ids=name)
async def test_what_cannot_be_kept_is_not_done(api: Api, route: Route) -> None:
    api.server.sql(
        "create or replace function refuse() returns trigger language plpgsql as $$ begin"
        " raise exception 'no' using errcode = '23514'; end $$"
    )
    api.server.sql(
        "create or replace trigger refuse before insert on idempotency_keys for each row"
        " when (new.key = 'refused') execute function refuse()"
    )
    sends = await request(api, route)
    before = sends.done()
    await sends("refused", expect=422)
    if route.path == "/v1/usage":
        await sends("refused", expect=422, json={"model": "one alone"})
    assert sends.done() == before


@pytest.mark.parametrize("route", ONCE, ids=name)
async def test_a_key_stands_for_one_request(api: Api, route: Route) -> None:
    sends = await request(api, route)
    other = "/v1/agents" if route.path != "/v1/agents" else "/v1/threads"
    await sends("k")
    done = sends.done()
    refused = await api.admin.post(
        other,
        {"name": "x", "instructions": ""} if other == "/v1/agents" else {"name": "x"},
        expect=422,
        headers={"Idempotency-Key": "k"},
    )
    assert refused["code"] == "idempotency_key_reused"
    if sends.body is not None:
        changed: Any = {**sends.body, "name": "another"} if isinstance(sends.body, dict) else [{}]
        if "overlapSeconds" in changed:
            changed = {"overlapSeconds": 61}
        if "packageId" in changed:
            changed = {"packageId": changed["packageId"], "endDate": "2999-01-01T00:00:00Z"}
        refused = await sends("k", expect=422, json=changed)
        assert refused["code"] == "idempotency_key_reused"
    assert sends.done() == done


@pytest.mark.parametrize("route", ONCE, ids=name)
async def test_without_its_permission_nobody_is_answered_again(api: Api, route: Route) -> None:
    sends = await request(api, route)
    await sends("k")
    sends.client = await api.server.caller(api.admin.user, "packages:read")
    await sends("k", expect=403)


async def test_a_users_key_is_nothing_to_another_user(api: Api) -> None:
    body, headers = {"name": "mine", "instructions": "secret"}, {"Idempotency-Key": "k"}
    hers = await api.alice.post("/v1/agents", body, headers=headers)
    his = await api.bob.post("/v1/agents", body, headers=headers)
    assert hers["id"] != his["id"]
    assert "Idempotency-Replayed" not in his.headers
    for client, made in ((api.alice, hers), (api.bob, his)):
        assert [row["id"] for row in await client.all("/v1/agents")] == [made["id"]]
        assert (await client.post("/v1/agents", body, headers=headers)).body == made.body


async def test_two_keys_of_a_user_share_their_words(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    made = await api.alice.post("/v1/threads", {"name": "x"}, headers=headers)
    other = await api.server.caller(api.alice.user, "threads:write")
    assert (await other.post("/v1/threads", {"name": "x"}, headers=headers)).body == made.body


async def test_after_a_mistake_the_same_key_serves_for_the_right_request(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    await api.alice.post("/v1/threads", {"name": "taken", "storageId": f"s of {api.alice.user}"})
    for expect, body in (
        (422, {"name": ""}),
        (422, {"name": "x", "agentId": "agnt_nothing"}),
        (409, {"name": "x", "storageId": f"s of {api.alice.user}"}),
    ):
        await api.alice.post("/v1/threads", body, expect=expect, headers=headers)
        assert stored(api) == 0
    await api.alice.post("/v1/threads", {"name": "right"}, headers=headers)
    assert stored(api) == 1
    wrong = {"Idempotency-Key": "k2"}
    refused = await api.alice.post("/v1/usage", {"apiKeyId": "key_nothing"}, expect=422, headers=wrong)
    assert refused.places == ["/apiKeyId"]
    await api.alice.post("/v1/usage", {"eventId": "e"}, headers=wrong)
    assert stored(api) == 2


def stored(api: Api) -> int:
    return int(api.server.sql("select count(*) from idempotency_keys where user_id = %s", api.alice.user)[0][0])


async def test_a_request_that_was_right_once_is_answered_though_it_would_be_wrong_now(api: Api) -> None:
    made = await api.alice.post("/v1/threads", {"name": "x"})
    path, headers = f"/v1/threads/{made['id']}/restore", {"Idempotency-Key": "k"}
    restored = await api.alice.post(path, expect=200, headers=headers)
    api.server.sql("delete from threads where id = %s", made["id"])
    assert (await api.alice.post(path, expect=200, headers=headers)).body == restored.body
    await api.alice.post(path, expect=404)


@pytest.mark.parametrize("bad", ["", " ", "x" * 256, "naïve", "tab\there", "crf_test_0123456789abcdef_x"])
async def test_a_bad_key_is_refused_and_nothing_done(api: Api, bad: str) -> None:
    refused = await api.alice.post("/v1/threads", {"name": "x"}, expect=422, headers={"Idempotency-Key": bad})
    assert refused.places == ["Idempotency-Key"]
    if bad.strip():
        assert bad not in refused.raw.decode()
    assert await api.alice.all("/v1/threads") == []


async def test_two_keys_are_none(api: Api) -> None:
    both = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Authorization", f"Bearer {api.alice.token}")]
    async with api.alice._http.post("/v1/threads", json={"name": "x"}, headers=both) as answer:
        assert answer.status == 422


@pytest.mark.parametrize("good", ["x", "x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b ~!"])
async def test_any_printable_word_is_a_key(api: Api, good: str) -> None:
    for replayed in (None, "true"):
        answer = await api.alice.post("/v1/threads", {"name": "x"}, headers={"Idempotency-Key": good})
        assert answer.headers.get("Idempotency-Replayed") == replayed


async def test_what_does_nothing_is_done_again(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {})
    body, headers = {"key": made["key"]}, {"Idempotency-Key": "k"}
    assert (await api.alice.post("/v1/api-keys/verify", body, expect=200, headers=headers))["valid"] is True
    await api.alice.delete(f"/v1/api-keys/{made['id']}")
    assert (await api.alice.post("/v1/api-keys/verify", body, expect=200, headers=headers))["valid"] is False
    assert stored(api) == 0


async def test_a_rotation_is_known_when_it_is_answered(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {})
    old = api.server.with_token(made["key"])
    await old.get("/v1/me")
    path, body = f"/v1/api-keys/{made['id']}/rotate", {"overlapSeconds": 0}
    rotated = await api.alice.post(path, body, headers={"Idempotency-Key": "k"})
    await old.get("/v1/me", expect=401)
    await api.server.with_token(rotated["key"]).get("/v1/me")


async def test_an_answer_that_is_too_large_to_be_kept_is_refused_and_nothing_done(api: Api) -> None:
    # Each number is some bytes on the way in, and three hundred on the way out.
    body = {"name": "x", "instructions": "", "tools": [1e300] * 8000}
    refused = await api.alice.post("/v1/agents", body, expect=413, headers={"Idempotency-Key": "k"})
    assert "Idempotency-Key" in refused["detail"]
    assert await api.alice.all("/v1/agents") == []
    await api.alice.post("/v1/agents", body)


async def test_what_is_kept_is_sealed_where_there_are_keys(database_url: str, signer: Signer) -> None:
    async with serving(database_url, signer, encryption_keys=keyring.parse(RING)) as server:
        api = await introduce(server)
        body, headers = {"name": "x", "instructions": "the secret plan"}, {"Idempotency-Key": "k"}
        made = await api.alice.post("/v1/agents", body, headers=headers)
        kept = server.sql("select body from idempotency_keys")[0][0]
        assert kept.startswith("crafely:1:k1:")
        assert "plan" not in kept
        assert (await api.alice.post("/v1/agents", body, headers=headers)).body == made.body
        await forgotten_by_housekeeping(server)


async def forgotten_by_housekeeping(server: Server) -> None:
    server.sql("update idempotency_keys set created_at = now() - interval '25 hours'")
    server.sql("insert into idempotency_keys (user_id, key, fingerprint, status, body) values ('u', 'k', 'f', 201, '')")
    async with serving(server.url, server.signer, encryption_keys=keyring.parse(RING)):
        for _ in range(500):
            if server.sql("select key, user_id from idempotency_keys") == [("k", "u")]:
                return
            await asyncio.sleep(0.02)
    pytest.fail("never forgotten")


def waited_for(condition: Callable[[], object]) -> None:
    for _ in range(1500):
        if condition():
            return
        threading.Event().wait(0.02)
    pytest.fail("never seen")


@pytest.mark.parametrize("stored_before", [False, True], ids=["before it is stored", "before it is answered"])
async def test_a_server_that_is_killed_has_done_all_or_nothing_and_then_it_is_done_once(
    database_url: str, folder: Path, stored_before: bool
) -> None:
    await asyncio.to_thread(_killed, database_url, folder, stored_before=stored_before)


def _killed(url: str, folder: Path, *, stored_before: bool) -> None:
    key = make_key(Settings(), url, user_id="alice", name=None, permissions=["*"]).token
    variables = {"CRAFELY_DATABASE_URL": url, "CRAFELY_ENCRYPTION_KEYS": RING}
    body = json.dumps({"name": "once", "instructions": ""})
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Idempotency-Key": "k"}

    def send(server: Serving) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
        connection.request("POST", "/v1/agents", body, headers)
        return connection

    def count() -> int:
        return int(superuser.execute("select count(*) from agents").fetchall()[0][0])

    with psycopg.connect(url, autocommit=True) as superuser:
        server = Serving(folder, **variables).ready()
        if stored_before:
            sent = send(server)
            waited_for(lambda: count() == 1)
            server.process.kill()
        else:
            with superuser.transaction():
                superuser.execute("lock table agents in share mode")
                sent = send(server)
                waited_for(lambda: superuser.execute("select 1 from pg_locks where not granted").fetchall())
                server.process.kill()
                server.process.wait(60)
            waited_for(lambda: not superuser.execute("select 1 from pg_locks where locktype = 'advisory'").fetchall())
            assert count() == 0
        server.process.wait(60)
        sent.close()
        again = Serving(folder, **variables).ready()
        for replayed in ("true" if stored_before else None, "true"):
            with closing(send(again)) as connection, connection.getresponse() as answer:
                assert (answer.status, answer.headers["Idempotency-Replayed"]) == (201, replayed)
            assert count() == 1
        again.stop()
