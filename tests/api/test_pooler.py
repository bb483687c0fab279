"""The application behind PgBouncer in transaction mode: what a client sees of it, and of what happens to it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from crafely.db import embedded
from tests.api.conftest import Answer, Api, Client, Server, check, introduce, serving
from tests.auth.conftest import Signer
from tests.db.harm import away
from tests.pooler import Pooler, needs_pgbouncer, pooling

pytestmark = [needs_pgbouncer, pytest.mark.asyncio(loop_scope="module")]

TRAIL = """
    select user_id, actor_user_id, actor_role, actor_api_key_id is not null, request_id is not null, count(*)
    from audit_log
    where user_id = any(%s)
        and table_name = 'agents'
    group by 1, 2, 3, 4, 5
    order by 1
"""
_NOTHING: dict[str, Any] = {}
RECORD = {"provider": "p", "model": "m", "tokensIn": 1}


@pytest.fixture(scope="module")
def pooler(server: embedded.Server) -> Iterator[Pooler]:
    """One connection of the server, for everybody."""
    with pooling(server.url, default_pool_size=1) as pooler:
        yield pooler


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(module_database: str, pooler: Pooler, signer: Signer) -> AsyncIterator[Server]:
    """A server that nobody harms; with patience, for all wait for one connection."""
    url = pooler.url(module_database)
    async with serving(module_database, signer, pooler_url=url, pool_timeout=60, statement_timeout=60) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def callers(behind: Server) -> Api:
    return await introduce(behind)


async def ask(client: Client, path: str, body: object = None) -> Answer:
    """An answer of whatever status, as it is described."""
    method, options = ("GET", _NOTHING) if body is None else ("POST", {"json": body})
    headers = {"Authorization": f"Bearer {client.token}"}
    async with client._http.request(method, path, headers=headers, **options) as response:
        answer = Answer(response.status, response.headers, await response.read())
    check(method, path, answer)
    if answer.status == 503:
        assert answer["code"] in {"unavailable", "retry", "timeout"}
        assert int(answer.headers["Retry-After"]) >= 1
    return answer


async def statuses(client: Client, *paths: str) -> set[int]:
    return {(await ask(client, path)).status for path in paths}


async def everything(client: Client) -> set[int]:
    """The statuses of requests of every kind, at once."""
    agent = {"name": "a", "instructions": "i"}
    asked: list[tuple[str, Any]] = [
        ("/v1/me", None),
        ("/v1/agents", None),
        ("/v1/usage/stats", None),
        ("/v1/agents", agent),
    ]
    asked += [("/v1/usage", RECORD), ("/v1/usage", [RECORD, RECORD])]
    return {answer.status for answer in await asyncio.gather(*(ask(client, path, body) for path, body in asked))}


async def recovered(client: Client) -> None:
    """Waits until everything is answered as ever; nobody has helped the server."""
    async with asyncio.timeout(60):
        while 503 in await everything(client):  # noqa: ASYNC110 - another process says when
            await asyncio.sleep(0.05)


async def test_everybody_at_once_sees_his_own_and_the_trail_knows_who(callers: Api) -> None:
    async def story(client: Client, number: int) -> None:
        body = {"name": f"{client.user} {number}", "instructions": "i"}
        headers = {"Idempotency-Key": f"{client.user} {number}"}
        agent = await client.post("/v1/agents", body, headers=headers)
        again = await client.post("/v1/agents", body, headers=headers)
        assert again["id"] == agent["id"]
        await client.patch(f"/v1/agents/{agent['id']}", {"context": "c"})
        await client.post("/v1/threads", {"name": "t", "agentId": agent["id"]})
        await client.post("/v1/threads", {"name": "t", "agentId": "agnt_of_nobody"}, expect=422)
        await client.post("/v1/usage", RECORD)
        await client.post("/v1/usage", [RECORD, RECORD])
        names = {row["name"] for row in await client.all("/v1/agents")}
        assert body["name"] in names
        assert all(name.startswith(f"{client.user} ") for name in names)

    clients = (callers.alice, callers.bob)
    async with asyncio.timeout(120):
        await asyncio.gather(*(story(client, number) for number in range(4) for client in clients))

    for client in clients:
        assert len(await client.all("/v1/agents")) == 4
        assert len(await client.all("/v1/usage")) == 12
        (day,) = (await client.get("/v1/usage/daily"))["data"]
        assert day["records"] == 12
    users = sorted(client.user for client in clients)
    trail = callers.server.sql(TRAIL, users)
    assert trail == [(user, user, "crafely_app", True, True, 8) for user in users]


async def test_a_revoked_key_is_refused_at_once(callers: Api) -> None:
    made = await callers.alice.post("/v1/api-keys", {"name": "k", "permissions": ["agents:read"]})
    holder = callers.server.with_token(made["key"])
    await holder.get("/v1/agents")
    # Past the API: only the notification can tell.
    callers.server.sql("update api_keys set active = false where id = %s", made["id"])

    async with asyncio.timeout(60):
        while await statuses(holder, "/v1/agents") == {200}:  # noqa: ASYNC110 - a notification says when
            await asyncio.sleep(0.01)
    await holder.get("/v1/agents", expect=401)


async def test_the_desk_and_readiness_go_through_it(callers: Api) -> None:
    await callers.anonymous.get("/readyz")
    assert (await callers.admin.get("/v1/monitor/pool")).status == 200
    assert (await callers.admin.get("/v1/audit-log"))["data"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_pooler_that_goes_and_comes_is_503_and_nothing_else(
    server: embedded.Server, database_url: str, signer: Signer, number: signal.Signals
) -> None:
    with pooling(server.url) as own:
        async with serving(database_url, signer, pooler_url=own.url(database_url)) as behind:
            api = await introduce(behind)
            await recovered(api.alice)
            for _ in range(2):
                own.stop(number)
                # Known keys are known; all else has to say that it is unavailable.
                assert await everything(api.alice) <= {200, 503}
                assert await statuses(api.bob, "/v1/agents", "/readyz") == {503}
                own.start()
                await recovered(api.alice)


async def test_a_server_that_is_away_behind_it_is_503_and_nothing_else(
    server: embedded.Server, database_url: str, signer: Signer
) -> None:
    with pooling(server.url, server_login_retry=1, query_wait_timeout=3) as own:
        async with serving(database_url, signer, pooler_url=own.url(database_url)) as behind:
            api = await introduce(behind)
            await recovered(api.alice)
            with away(server, database_url):
                assert await everything(api.alice) == {503}
                assert await statuses(api.alice, "/readyz") == {503}
            await recovered(api.alice)


async def test_who_waits_too_long_behind_it_is_told_to_come_back(
    server: embedded.Server, database_url: str, signer: Signer
) -> None:
    with pooling(server.url, default_pool_size=1, query_wait_timeout=3) as own:
        async with serving(database_url, signer, pooler_url=own.url(database_url), pool_timeout=5) as behind:
            api = await introduce(behind)
            await recovered(api.alice)
            with psycopg.connect(own.url(database_url), prepare_threshold=None) as holder:
                holder.execute("select 1")
                assert await everything(api.alice) <= {200, 503}
                assert await statuses(api.alice, "/v1/agents") == {503}
            await recovered(api.alice)


async def test_a_statement_that_takes_too_long_is_given_up(pooler: Pooler, database_url: str, signer: Signer) -> None:
    url = pooler.url(database_url)
    async with serving(database_url, signer, pooler_url=url, statement_timeout=4) as behind:
        api = await introduce(behind)
        with psycopg.connect(database_url) as blocker:
            blocker.execute("lock table agents in access exclusive mode")
            answer = await ask(api.alice, "/v1/agents")
            # Half of the time is for a lock.
            assert (answer.status, answer["code"]) == (503, "retry")
        await api.alice.get("/v1/agents")
