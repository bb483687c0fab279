"""The desk over HTTP: what administrators are told of the database, and that it is what the database says."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import psycopg
import pytest

from tests import pooler
from tests.api.conftest import Api, Client, Server, serving
from tests.auth.conftest import Signer

pytestmark = pytest.mark.asyncio(loop_scope="module")
# For the tests that need a server of their own.
alone = pytest.mark.asyncio(loop_scope="function")


async def mixed_load(api: Api, rounds: int) -> None:
    """What users do, some of it often, from several connections at once."""

    async def one(user: Client) -> None:
        for number in range(rounds):
            agent = await user.post("/v1/agents", {"name": f"agent {number}", "instructions": "be brief"})
            thread = await user.post("/v1/threads", {"name": "thread", "agentId": agent["id"]})
            await user.get(f"/v1/agents/{agent['id']}?include=threads")
            await user.patch(f"/v1/threads/{thread['id']}", {"name": "another"})
            await user.post("/v1/usage", [{"provider": "openai", "tokensIn": 5, "cost": "0.1"}] * 20)
            await user.post("/v1/usage", {"tokensIn": 1, "eventId": f"event {number}"})
            for path in ("/v1/agents", "/v1/threads", "/v1/usage", "/v1/usage/stats", "/v1/usage/daily", "/v1/me"):
                await user.get(path)

    await asyncio.gather(one(api.alice), one(api.bob), one(api.admin))


def by_file(server: Server) -> dict[str, tuple[int, float, int]]:
    """Calls, milliseconds and rows of each file, summed up by ourselves from what pg_stat_statements has."""
    sums: dict[str, tuple[int, float, int]] = defaultdict(lambda: (0, 0.0, 0))
    for text, *numbers in server.sql(
        "select query, calls, total_exec_time, rows from pg_stat_statements"
        " where dbid = (select oid from pg_database where datname = current_database()) and toplevel"
    ):
        if name := re.search(r"crafely:(\w+/\w+)", text.partition("\n")[0]):
            sums[name[1]] = tuple(a + b for a, b in zip(sums[name[1]], numbers, strict=True))
    return sums


def costliest(names: Iterable[str]) -> list[str]:
    """The first five that the desk itself does not run: its own go on while one looks."""
    return [name for name in names if not name.startswith("monitor/")][:5]


async def test_the_costliest_files_are_those_of_pg_stat_statements(api: Api) -> None:
    api.server.sql("create extension if not exists pg_stat_statements")
    await mixed_load(api, 15)
    for _ in range(20):
        before = by_file(api.server)
        desk = await api.admin.get("/v1/monitor/queries?take=100")
        sums = by_file(api.server)
        wanted = costliest(sorted(sums, key=lambda name: -sums[name][1]))
        # Housekeeping goes on meanwhile: what we compare with must not have changed.
        if all(before[name] == sums[name] for name in wanted):
            break
    assert costliest(one["statement"] for one in desk["data"]) == wanted
    assert {"usage/record", "agents/create"} <= {*sums}
    assert desk["problem"] is None
    for one in desk["data"]:
        calls, total_ms, rows = sums[one["statement"]]
        assert one["calls"] <= calls
        assert one["totalMs"] <= total_ms * 1.0001
        assert one["meanMs"] == pytest.approx(one["totalMs"] / one["calls"])
        assert one["rowsPerCall"] * one["calls"] <= rows * 1.0001
        assert 0 < one["share"] < 1
        assert one["hitPerCall"] > 0 or one["statement"] not in wanted
    assert sum(one["share"] for one in desk["data"]) <= 1


async def test_the_most_frequent_and_the_slowest_files(api: Api) -> None:
    api.server.sql("create extension if not exists pg_stat_statements")
    await mixed_load(api, 1)
    for sort, measure in (("calls", "calls"), ("mean", "meanMs"), ("total", "totalMs")):
        rows = (await api.admin.get(f"/v1/monitor/queries?sort={sort}&take=500"))["data"]
        values = [row[measure] for row in rows]
        assert len(values) > 10
        assert values == sorted(values, reverse=True)
    refused = await api.admin.get("/v1/monitor/queries?sort=cost", expect=422)
    assert refused.places == ["sort"]


@alone
async def test_without_pg_stat_statements_the_answer_says_so(own: Server) -> None:
    admin = await own.caller("root", "admin")
    desk = await admin.get("/v1/monitor/queries")
    assert desk["data"] == []
    assert "create extension pg_stat_statements" in desk["problem"]
    [alert] = [one for one in (await admin.get("/v1/monitor/alerts"))["data"] if one["code"] == "no_statistics"]
    assert alert["object"] == "pg_stat_statements"


async def test_storage_has_every_table_with_its_partitions(api: Api) -> None:
    desk = await api.admin.get("/v1/monitor/storage")
    tables = {one["name"]: one for one in desk["data"]}
    assert {"agents", "usage", "usage_default", "monitor_samples"} <= set(tables)
    parts = [one for one in desk["data"] if one["parent"] == "usage"]
    assert tables["usage"]["partitions"] == len(parts) >= 5
    assert tables["usage"]["bytes"] == sum(one["bytes"] for one in parts)
    assert desk["bytes"] > sum(one["bytes"] for one in desk["data"] if one["parent"] is None)
    assert 0 < desk["tableHitRate"] <= 1


async def test_the_pools_and_the_connections(api: Api) -> None:
    desk = await api.admin.get("/v1/monitor/pool")
    # Those on a standby besides, where the run has one.
    pools = {one["role"]: one for one in desk["pools"] if not one["role"].endswith(" replica")}
    assert set(pools) == {f"crafely_{role}" for role in ("app", "auth", "meter", "admin", "monitor")}
    assert pools["crafely_app"]["maxSize"] == 4
    assert pools["crafely_monitor"]["maxSize"] == 2
    mine = [one for one in desk["data"] if one["application"] == "crafely app"]
    # Behind a pooler several of ours share one of the server's.
    fewest = 1 if pooler.ASKED_FOR else pools["crafely_app"]["size"]
    assert sum(one["connections"] for one in mine) >= fewest >= 1
    assert 0 < desk["databaseConnections"] <= desk["connections"] < desk["maxConnections"]


async def test_of_a_statement_only_its_file_is_told(api: Api) -> None:
    with psycopg.connect(api.server.url, application_name="open at heart") as connection:
        connection.execute("select 'a secret of alice''s'")
        answer = await api.admin.get("/v1/monitor/activity")
        [mine] = [one for one in answer["transactions"] if one["application"] == "open at heart"]
    assert (mine["state"], mine["statement"]) == ("idle in transaction", None)
    assert mine["seconds"] >= 0
    assert b"secret" not in answer.raw


@alone
async def test_the_desk_connects_when_it_is_first_asked(own: Server) -> None:
    def connections() -> list[tuple[Any, ...]]:
        return own.sql(
            "select count(*) from pg_stat_activity"
            " where application_name = 'crafely monitor' and datname = current_database()"
        )

    assert connections() == [(0,)]
    await (await own.caller("root", "monitor:read")).get("/v1/monitor/alerts")
    assert connections() == [(1,)]


@alone
async def test_a_login_that_lacks_the_role_serves_and_says_what_is_missing(
    database_url: str, signer: Signer, superuser: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    superuser.execute(
        "create role lacking login noinherit; grant crafely_app, crafely_auth, crafely_meter, crafely_admin to lacking"
    )
    url = psycopg.conninfo.make_conninfo(database_url, user="lacking")
    try:
        async with serving(url, signer) as server:
            admin = await server.caller("root", "admin")
            refused = await admin.get("/v1/monitor/alerts", expect=503)
            assert 'role "crafely_monitor"' in refused["detail"]
            await admin.get("/v1/me")
            # The README's line for a login names them all.
            superuser.execute("create extension pg_stat_statements; grant crafely_monitor to lacking")
            assert (await admin.get("/v1/monitor/alerts"))["data"] == []
            statements = (await admin.get("/v1/monitor/queries"))["data"]
            assert "monitor/overview" in {one["statement"] for one in statements}
    finally:
        superuser.execute("drop role lacking")
