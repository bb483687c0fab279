"""What operators see: health, readiness, metrics, logs, the documentation, and what a fault of ours looks like."""

import asyncio
import base64
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crafely.api import ROUTES, openapi
from crafely.api.wire import Route
from crafely.db import embedded
from tests.api.conftest import Answer, Api, Client, Server, introduce, lines, serving
from tests.auth.conftest import Signer
from tests.db.harm import away

pytestmark = pytest.mark.asyncio(loop_scope="module")
# For the tests that harm their server.
alone = pytest.mark.asyncio(loop_scope="function")

LISTS = [route for route in ROUTES if route.method == "GET" and "{" not in route.path]


async def test_healthz_answers_while_the_process_lives(api: Api) -> None:
    assert (await api.anonymous.get("/healthz")).body == {"status": "ok"}


async def test_readyz_answers_when_database_and_migrations_are_there(api: Api) -> None:
    assert (await api.anonymous.get("/readyz")).body == {"status": "ready"}


@alone
async def test_readyz_says_that_a_migration_is_missing(own: Server) -> None:
    own.sql("delete from _yoyo_migration where migration_id = '0012.audit-log'")
    refused = await own.with_token("").get("/readyz", expect=503)
    assert refused["code"] == "unavailable"
    assert "migrations of this release are missing: run crafely migrate up" in refused["detail"]


@alone
async def test_readyz_says_that_there_is_no_schema(empty_database: str, template: str, signer: Signer) -> None:
    async with serving(empty_database, signer) as server:
        refused = await server.with_token("").get("/readyz", expect=503)
        assert "no schema yet: run crafely migrate up" in refused["detail"]


async def again(caller: Client, path: str) -> Answer:
    """GET until it is answered. The time limit is there for a failing test to end."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await caller.get(path)
            except AssertionError:
                await asyncio.sleep(0.1)


@alone
async def test_without_its_database_the_server_says_so_and_comes_back_by_itself(
    server: embedded.Server, own: Server
) -> None:
    api = await introduce(own)
    agent = await api.alice.post("/v1/agents", {"name": "one", "instructions": ""})
    with away(server, own.url):
        refused = await api.anonymous.get("/readyz", expect=503)
        assert "the database cannot be reached" in refused["detail"]
        # The process lives: a restart would not help.
        await api.anonymous.get("/healthz")
        refused = await api.alice.get("/v1/agents", expect=503)
        assert refused["code"] == "unavailable"
        assert refused.headers["Retry-After"] == "1"
    await again(api.anonymous, "/readyz")
    # A pool that looked for its database meanwhile may look again only after some seconds.
    assert (await again(api.alice, agent.headers["Location"])).body == agent.body


async def sample(api: Api, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, and perhaps others, at one moment."""
    text = (await api.anonymous.get("/metrics")).raw.decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


async def test_metrics_count_requests_by_route_and_statements_by_file(api: Api) -> None:
    request = {"method": "GET", "route": "/v1/agents/{id}", "status": "404"}
    before = [
        await sample(api, "crafely_http_requests_total", **request),
        await sample(api, "crafely_http_request_duration_seconds_count", route="/v1/agents/{id}"),
        await sample(api, "crafely_statement_duration_seconds_count", statement="agents/get"),
    ]
    await api.alice.get("/v1/agents/agnt_1", expect=404)
    await api.alice.get("/v1/agents/agnt_2", expect=404)
    after = [
        await sample(api, "crafely_http_requests_total", **request),
        await sample(api, "crafely_http_request_duration_seconds_count", route="/v1/agents/{id}"),
        await sample(api, "crafely_statement_duration_seconds_count", statement="agents/get"),
    ]
    assert [late - early for late, early in zip(after, before, strict=True)] == [2, 2, 2]


async def test_metrics_show_how_keys_are_verified_and_what_is_shared(api: Api) -> None:
    async def now() -> list[float]:
        return [
            await sample(api, "crafely_key_cache_lookups_total", result="hit"),
            await sample(api, "crafely_key_cache_lookups_total", result="miss"),
            await sample(api, "crafely_key_cache_evictions_total"),
            await sample(api, "crafely_coalesced_items_total", statement="usage/record"),
            await sample(api, "crafely_coalesced_batches_total", statement="usage/record"),
        ]

    made = await api.alice.post("/v1/api-keys", {"permissions": ["usage:write"]})
    before = await now()
    caller = api.server.with_token(made["key"])
    # The row is read, the secret tried, and the row read again: one miss; then it is remembered.
    for _ in range(3):
        await caller.post("/v1/usage", {"tokensIn": 1})
    await api.alice.delete(f"/v1/api-keys/{made['id']}")
    hits, misses, evictions, items, batches = (late - early for late, early in zip(await now(), before, strict=True))
    # Two of the caller's own, and alice's.
    assert hits >= 2
    assert misses >= 1
    # By the one who answered, and by what the database told.
    assert evictions >= 1
    assert (items, batches) == (3, 3)
    assert await sample(api, "crafely_key_cache_entries") >= 2
    assert await sample(api, "crafely_key_cache_trusted") == 1
    assert await sample(api, "crafely_coalesced_waiting", statement="api_keys/lookup") == 0
    assert await sample(api, "crafely_argon2_waiting") == 0
    assert await sample(api, "crafely_listener_losses_total") >= 0


async def test_metrics_show_the_pools_and_no_ids(api: Api) -> None:
    await api.alice.get("/v1/agents/agnt_secret", expect=404)
    for role in ("crafely_app", "crafely_auth", "crafely_meter", "crafely_admin"):
        # Idle and busy ones together: one that is busy now is idle at the next look.
        assert await sample(api, "crafely_pool_connections", pool=role) >= 1, role
    text = (await api.anonymous.get("/metrics")).raw.decode()
    assert "agnt_" not in text
    assert api.alice.user not in text


async def test_a_failed_statement_is_counted_as_one(api: Api) -> None:
    before = await sample(api, "crafely_statement_errors_total", statement="threads/create")
    body = {"name": "x", "storageId": api.alice.user}
    await api.alice.post("/v1/threads", body)
    await api.alice.post("/v1/threads", body, expect=409)
    assert await sample(api, "crafely_statement_errors_total", statement="threads/create") == before + 1


async def test_the_description_that_is_served_is_the_one_of_the_route_table(api: Api) -> None:
    assert (await api.anonymous.get("/openapi.json")).body == json.loads(openapi.build(ROUTES))


async def test_the_documentation_needs_nothing_from_elsewhere_and_lets_nothing_else_run(api: Api) -> None:
    answer = await api.anonymous.get("/docs")
    page = answer.raw.decode()
    resources = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", page)
    assert not [one for one in resources if "//" in "".join(one)]
    assert not re.search(r"""["'`](https?:)?//""", page)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    # What the policy would not let run is not there.
    assert not re.search(r"<[^>]+\s(on\w+|style)\s*=", page.partition("<script>")[0])


@pytest.mark.parametrize("route", LISTS, ids=lambda route: route.path)
async def test_head_answers_what_get_does_without_the_body(api: Api, route: Route) -> None:
    got = await api.admin.get(route.path)
    head = await api.admin.request("HEAD", route.path, expect=200)
    # Metrics count, as do the database and the limits, and a key's lastUsedAt may be written between the two.
    counting = route.path in {"/metrics", "/v1/api-keys"} or route.path.startswith("/v1/monitor/")
    varying = {"Date", "X-Request-Id", "Ratelimit"} | ({"Content-Length"} if counting else set())
    wanted = {name: value for name, value in got.headers.items() if name.title() not in varying}
    assert {name: value for name, value in head.headers.items() if name.title() not in varying} == wanted


async def test_the_request_id_is_echoed_logged_and_audited(api: Api, log: io.StringIO) -> None:
    headers = {"X-Request-Id": f"trace.{api.alice.user}"}
    made = await api.alice.post("/v1/agents", {"name": "one", "instructions": ""}, headers=headers)
    assert made.headers["X-Request-Id"] == headers["X-Request-Id"]
    key = (await api.alice.get("/v1/me"))["apiKeyId"]
    trail = api.server.sql(
        "select request_id, actor_user_id, actor_api_key_id, actor_role, table_name, action, user_id"
        " from audit_log where row_id = %s",
        made["id"],
    )
    user = api.alice.user
    assert trail == [(headers["X-Request-Id"], user, key, "crafely_app", "agents", "insert", user)]
    [line] = [line for line in lines(log) if line.get("requestId") == headers["X-Request-Id"]]
    expected = {"method": "POST", "route": "/v1/agents", "status": 201, "userId": user, "keyId": key}
    assert {name: line[name] for name in expected} == expected


@pytest.mark.parametrize("given", ["a b", "x" * 129, "a;b", "ä", "'; drop table agents; --", ""])
async def test_a_request_id_of_another_form_is_replaced(api: Api, given: str) -> None:
    answer = await api.alice.get("/v1/me", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


async def test_each_request_is_one_line_and_refused_ones_too(api: Api, log: io.StringIO) -> None:
    answers = [
        await api.alice.get("/v1/agents"),
        await api.alice.get("/v1/agents/agnt_1", expect=404),
        await api.anonymous.get("/v1/agents", expect=401),
        await api.alice.get("/v1/nothing", expect=404),
        await api.alice.post("/v1/agents", {}, expect=422),
    ]
    logged = [line for line in lines(log) if line["logger"] == "crafely.access"]
    assert [line["requestId"] for line in logged] == [answer.headers["X-Request-Id"] for answer in answers]
    assert [line["status"] for line in logged] == [200, 404, 401, 404, 422]
    assert [line["route"] for line in logged] == [
        "/v1/agents",
        "/v1/agents/{id}",
        "/v1/agents",
        "(none)",
        "/v1/agents",
    ]


async def test_no_secret_reaches_log_audit_or_answer_wherever_it_is_put(api: Api, log: io.StringIO) -> None:
    made = await api.alice.post("/v1/api-keys", {"name": "x"})
    key = made["key"]
    session = api.server.signed_in("alice").token
    for secret in (key, session):
        answers = [
            await api.alice.get("/v1/agents", params={"key": secret}, expect=422),
            await api.alice.get("/v1/agents", params={secret[:60]: "1"}, expect=422),
            await api.alice.get(f"/v1/agents/{secret[:200]}", expect=404),
            await api.alice.get("/v1/me", headers={"X-Request-Id": secret}),
            await api.alice.get("/v1/me", headers={"User-Agent": secret, "Cookie": secret, "Referer": secret}),
            await api.anonymous.get("/v1/me", headers={"Authorization": f"Basic {secret}"}, expect=401),
            await api.server.with_token(secret + "x").get("/v1/me", expect=401),
            await api.alice.post("/v1/agents", {"name": secret[:255], "instructions": "", "x": 1}, expect=422),
        ]
        said = b"".join(answer.raw for answer in answers[2:])
        assert secret[:40].encode() not in said
        assert all(secret not in answer.headers.values() for answer in answers)
    assert lines(log)
    trail = json.dumps(api.server.sql("select new::text, request_id from audit_log"))
    for secret in (key, session, api.alice.token):
        assert secret[-30:] not in log.getvalue()
        assert secret[-30:] not in trail
    assert "$argon2" not in log.getvalue() + trail


@alone
async def test_a_fault_of_ours_is_opaque_outside_and_complete_in_the_log(own: Server, log: io.StringIO) -> None:
    api = await introduce(own)
    await api.alice.get("/v1/agents")
    own.sql("drop table agents cascade")
    answer = await api.alice.get("/v1/agents", expect=500, headers={"X-Request-Id": "req-500"})
    assert answer["code"] == "internal"
    assert answer["requestId"] == "req-500"
    assert not re.search(r"relation|agents|psycopg|sql|line \d|File", answer.raw.decode(), re.IGNORECASE)
    [entry] = [line for line in lines(log) if line["level"] == "error" and "housekeeping" not in line["message"]]
    assert entry["requestId"] == "req-500"
    assert 'relation "agents" does not exist' in entry["exception"]
    assert "Traceback" in entry["exception"]
    # What does not need the table goes on.
    await api.alice.get("/v1/threads")


async def bodies(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 65_536


async def test_what_is_sent_without_end_is_cut_off(api: Api) -> None:
    await api.alice.request(
        "POST", "/v1/agents", expect=413, data=bodies(1000), headers={"Content-Type": "application/json"}
    )
    await api.alice.get("/v1/me")
