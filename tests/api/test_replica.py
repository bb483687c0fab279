"""Reads that a standby answers, over HTTP: never less than anybody was told of, and no error whatever befalls it."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from crafely.cli.target import target
from crafely.config import Settings, SettingsError
from crafely.db import migrate
from tests import standby
from tests.api.conftest import Api, Server, introduce, serving
from tests.auth.conftest import Signer
from tests.cli.conftest import SECONDS, new_folder
from tests.standby import Node

ASKED = "select count(*) from pg_stat_activity where query like 'select /* crafely:threads/list_for_user */%'"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """A primary that is migrated, and its standby."""
    with new_folder() as folder, standby.servers(folder, max_connections="50") as nodes:
        migrate.up(nodes[0].url)
        yield nodes


@pytest.fixture
async def api(nodes: list[Node], signer: Signer) -> AsyncIterator[Api]:
    """A server that reads from the standby, which is well when the test begins."""
    async with serving(nodes[0].url, signer, **settings(nodes)) as server:
        api = await introduce(server)
        await eventually(lambda: used(server), "the standby to be used")
        yield api


def settings(nodes: list[Node], **more: Any) -> dict[str, Any]:
    return {"replica_url": nodes[1].url, "replica_lag": 600.0, **more}


async def eventually(holds: Callable[[], Awaitable[Any]], what: str) -> None:
    """Waits for something to become true, while servers of this process go on."""
    end = time.monotonic() + SECONDS
    while not await holds():
        assert time.monotonic() < end, f"waited {SECONDS} s: {what}"
        await asyncio.sleep(0.02)


async def metric(server: Server, name: str) -> float:
    text = (await server.with_token("").get("/metrics")).raw.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def used(server: Server) -> bool:
    return not await metric(server, "crafely_replica_left_alone")


async def unused(server: Server) -> bool:
    return not await used(server)


async def answered(server: Server) -> float:
    return await metric(server, 'crafely_replica_reads_total{answered_by="standby"}')


async def names(client: Any) -> list[str]:
    return [thread["name"] for thread in await client.all("/v1/threads")]


async def read_there(api: Api) -> None:
    """Waits until a list has been answered by the standby."""
    before = await answered(api.server)

    async def is_read() -> bool:
        await api.alice.get("/v1/threads")
        return await answered(api.server) > before

    await eventually(is_read, "a list that the standby answers")


async def test_a_standby_answers_lists_and_the_primary_writes(api: Api, nodes: list[Node]) -> None:
    await api.alice.post("/v1/threads", {"name": "one"})
    await read_there(api)

    assert nodes[1].ask(ASKED) == 1
    assert await names(api.alice) == ["one"]


async def test_a_user_sees_no_other_ones_rows_there(api: Api) -> None:
    thread = await api.alice.post("/v1/threads", {"name": "hers"})
    await read_there(api)

    assert await names(api.bob) == []
    await api.bob.get(f"/v1/threads/{thread['id']}", expect=404)


async def test_what_was_written_is_read_at_once_whichever_process_answers(
    api: Api, nodes: list[Node], signer: Signer
) -> None:
    async with serving(nodes[0].url, signer, **settings(nodes)) as other:
        there = other.with_token(api.alice.token)
        expected: list[str] = []
        for number in range(40):
            thread = await api.alice.post("/v1/threads", {"name": str(number)})
            expected.insert(0, thread["name"])
            assert await names(there) == expected
            if number % 4 == 0:
                await there.patch(f"/v1/threads/{thread['id']}", {"name": "changed"})
                expected[0] = "changed"
                assert (await api.alice.get(f"/v1/threads/{thread['id']}"))["name"] == "changed"
        await read_there(api)


async def test_it_is_so_while_the_standby_stands_still(api: Api, nodes: list[Node], signer: Signer) -> None:
    async with serving(nodes[0].url, signer, **settings(nodes)) as other:
        there = other.with_token(api.alice.token)
        await read_there(api)
        nodes[1].pause()
        try:
            for number in range(5):
                thread = await api.alice.post("/v1/threads", {"name": str(number)})
                assert (await there.get(f"/v1/threads/{thread['id']}"))["name"] == str(number)
                assert (await names(there))[0] == str(number)
        finally:
            nodes[1].resume()
    assert len(await names(api.alice)) == 5


async def test_too_far_behind_it_is_left_alone_and_comes_back(nodes: list[Node], signer: Signer) -> None:
    async with serving(nodes[0].url, signer, **settings(nodes, replica_lag=1.0)) as server:
        api = await introduce(server)

        async def problems() -> list[str]:
            alerts = (await api.admin.get("/v1/monitor/alerts"))["data"]
            return [alert["message"] for alert in alerts if alert["code"] == "replica_left_alone"]

        async def is_well() -> bool:
            return await metric(server, "crafely_replica_lag_seconds") < 1 and await problems() == []

        await read_there(api)
        await eventually(is_well, "no alert")
        nodes[1].pause()
        try:
            await api.alice.post("/v1/threads", {"name": "unseen there"})
            await eventually(lambda: unused(server), "the standby to be left alone")
            assert await metric(server, "crafely_replica_lag_seconds") > 1
            (message,) = await problems()
            assert re.fullmatch(r"nothing is read from the standby: it is \d+\.\d s behind", message)
            before = await answered(server)
            assert await names(api.alice) == ["unseen there"]
            assert await answered(server) == before
        finally:
            nodes[1].resume()
        await eventually(is_well, "the standby to be used again")
        await read_there(api)


@pytest.mark.parametrize("harm", ["stop", "kill"])
async def test_one_that_goes_down_costs_no_request_and_comes_back(api: Api, nodes: list[Node], harm: str) -> None:
    thread = await api.alice.post("/v1/threads", {"name": "one"})
    await read_there(api)
    ended = asyncio.Event()

    async def read() -> None:
        while not ended.is_set():
            # Any answer but 200 fails the test.
            await api.alice.get(f"/v1/threads/{thread['id']}")
            await api.anonymous.get("/readyz")

    readers = [asyncio.create_task(read()) for _ in range(4)]
    await asyncio.to_thread(getattr(nodes[1], harm))

    await eventually(lambda: unused(api.server), "the standby to be left alone")
    assert (await api.anonymous.get("/readyz")).status == 200
    await asyncio.to_thread(nodes[1].start)
    await eventually(lambda: used(api.server), "the standby to be used again")
    ended.set()
    await asyncio.gather(*readers)
    await read_there(api)


async def test_one_that_says_nothing_is_not_waited_for(nodes: list[Node], signer: Signer) -> None:
    """Its statements may take ten minutes; whoever waits for one is answered by the primary all the same."""
    more = settings(nodes, statement_timeout=600.0, request_timeout=SECONDS)
    async with serving(nodes[0].url, signer, **more) as server:
        api = await introduce(server)
        await eventually(lambda: used(server), "the standby to be used")
        await api.alice.post("/v1/threads", {"name": "one"})
        await read_there(api)
        with nodes[1].frozen():
            waiting = [asyncio.create_task(names(api.alice)) for _ in range(4)]
            assert await asyncio.gather(*waiting) == [["one"]] * 4
            await eventually(lambda: unused(server), "the standby to be left alone")
        await eventually(lambda: used(server), "the standby to be used again")


async def test_a_process_starts_without_its_standby(nodes: list[Node], signer: Signer) -> None:
    nodes[1].stop()
    try:
        async with serving(nodes[0].url, signer, **settings(nodes)) as server:
            api = await introduce(server)
            await api.alice.post("/v1/threads", {"name": "one"})
            assert await names(api.alice) == ["one"]
            assert not await used(server)
            await asyncio.to_thread(nodes[1].start)
            await eventually(lambda: used(server), "the standby to be used")
            await read_there(api)
    finally:
        if not nodes[1].cluster.listening():
            nodes[1].start()


async def test_what_is_no_standby_of_it_is_left_alone(nodes: list[Node], signer: Signer, database_url: str) -> None:
    for url, reason in ((nodes[0].url, "it is no standby"), (database_url, "it is a copy of another server")):
        async with serving(nodes[0].url, signer, replica_url=url) as server:
            api = await introduce(server)
            alerts = (await api.admin.get("/v1/monitor/alerts"))["data"]
            assert f"nothing is read from the standby: {reason}" in [alert["message"] for alert in alerts]
            await api.alice.post("/v1/threads", {"name": "one"})
            assert await names(api.alice) == ["one"]


def test_a_url_that_is_none_is_refused() -> None:
    settings = Settings(database_url="postgresql:///crafely", replica_url="postgresql://user:word@[half")
    with (
        pytest.raises(SettingsError, match=r"^CRAFELY_REPLICA_URL: expected a URL such as") as refused,
        target(settings),
    ):
        pass
    assert "word" not in str(refused.value)
