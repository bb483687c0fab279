"""What surrounds every handler: ids, logs, metrics, problems and the time limit, over real sockets."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from crafely.api import telemetry
from crafely.api.middleware import _Deadlines, middleware
from crafely.api.wire import CALLER_KEY
from crafely.auth import Caller

Client = TestClient[web.Request, web.Application]
TOKEN = "crf_live_0123456789abcdef_0123456789abcdef0123456789abcdef012345"


async def fine(request: web.Request) -> web.Response:
    request[CALLER_KEY] = Caller(user_id="user_1", permissions=frozenset(), api_key_id="key_1")
    return web.Response(text=request.match_info["id"])


async def broken(request: web.Request) -> web.Response:
    raise RuntimeError(f"the secret {TOKEN} of row 7")


async def slow(request: web.Request) -> web.Response:
    try:
        await asyncio.sleep(60)
    finally:
        request.app[LEFT].set()
    raise AssertionError("the time limit did not come")


async def stubborn(request: web.Request) -> web.Response:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return web.Response(text="done all the same")
    raise AssertionError("the time limit did not come")


async def patient(request: web.Request) -> web.Response:
    raise TimeoutError


async def disconnected(request: web.Request) -> web.Response:
    raise psycopg.OperationalError("connection to server at 10.0.0.7 failed")


LEFT = web.AppKey("left", asyncio.Event)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    app = web.Application(middlewares=[middleware(0.2)])
    app[LEFT] = asyncio.Event()
    app.router.add_get("/fine/{id}", fine)
    for handler in (broken, slow, stubborn, patient, disconnected):
        app.router.add_get(f"/{handler.__name__}", handler)
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    stream = io.StringIO()
    telemetry.configure_logging("info", stream)
    yield stream
    telemetry.configure_logging("info", io.StringIO())
    root.handlers[:] = before
    root.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def sample(name: str, **labels: str) -> float:
    found = [
        one.value
        for family in text_string_to_metric_families(telemetry.metrics().decode())
        for one in family.samples
        if one.name == name and one.labels == labels
    ]
    return found[0] if found else 0


@pytest.mark.parametrize("given", ["a", "A-1.b_c", "x" * 128])
async def test_a_good_request_id_is_kept(client: Client, given: str) -> None:
    for path in ("/fine/1", "/broken", "/nowhere"):
        reply = await client.get(path, headers={"X-Request-Id": given})
        assert reply.headers["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "é", '"', "a/b"])
async def test_any_other_request_id_is_replaced_by_a_new_one(client: Client, given: str) -> None:
    ids = {(await client.get("/fine/1", headers={"X-Request-Id": given})).headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(one) == 32 and given != one for one in ids)


async def test_one_line_for_a_request_with_its_template_and_caller(client: Client, log: io.StringIO) -> None:
    await client.get(f"/fine/{TOKEN}?token={TOKEN}", headers={"X-Request-Id": "r1", "Authorization": f"Bearer {TOKEN}"})
    (line,) = lines(log)
    assert line.pop("time").endswith("Z")
    assert 0 < line.pop("ms") < 60_000
    assert line == {
        "level": "info",
        "logger": "crafely.access",
        "message": "request",
        "requestId": "r1",
        "method": "GET",
        "route": "/fine/{id}",
        "status": 200,
        "userId": "user_1",
        "keyId": "key_1",
    }


async def test_no_lines_for_requests_above_level_info(client: Client, log: io.StringIO) -> None:
    logging.getLogger().setLevel("WARNING")
    await client.get("/fine/1")
    assert log.getvalue() == ""


async def test_the_unexpected_is_logged_and_answered_without_a_word_of_it(client: Client, log: io.StringIO) -> None:
    reply = await client.get("/broken", headers={"X-Request-Id": "r2"})
    text = await reply.text()
    assert (reply.status, json.loads(text)["code"]) == (500, "internal")
    assert "row 7" not in text
    error, access = lines(log)
    assert (error["level"], error["requestId"], error["route"]) == ("error", "r2", "/broken")
    assert "RuntimeError: the secret (secret) of row 7" in error["exception"]
    assert TOKEN not in log.getvalue()
    assert access["status"] == 500


async def test_a_lost_database_is_503_and_its_address_stays_in_the_log(client: Client, log: io.StringIO) -> None:
    reply = await client.get("/disconnected")
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    assert "10.0.0.7" not in await reply.text()
    assert "10.0.0.7" in lines(log)[0]["message"]


async def test_the_time_limit_cancels_the_handler(client: Client) -> None:
    reply = await client.get("/slow")
    assert (reply.status, (await reply.json(content_type=None))["code"]) == (503, "timeout")
    assert client.server is not None
    assert client.app is not None
    assert client.app[LEFT].is_set()


async def test_a_handler_that_ends_in_spite_of_its_limit_is_heard(client: Client) -> None:
    assert await (await client.get("/stubborn")).text() == "done all the same"


async def test_nothing_is_left_of_the_cancellation() -> None:
    # What comes after the handler in the same task must be able to wait.
    deadlines = _Deadlines(0.05)
    task = deadlines.begin()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(60)
    assert task in deadlines.passed
    deadlines.end(task)
    assert (task.cancelling(), deadlines.passed) == (0, set())


async def test_many_requests_share_one_limit_each_from_its_own_start(client: Client) -> None:
    replies = await asyncio.gather(*(client.get("/slow") for _ in range(20)), client.get("/fine/1"))
    assert [reply.status for reply in replies] == [503] * 20 + [200]


async def test_another_timeout_is_not_the_time_limit(client: Client) -> None:
    assert (await client.get("/patient")).status == 500


async def test_requests_are_counted_by_template(client: Client) -> None:
    labels = {"method": "GET", "route": "/fine/{id}", "status": "200"}
    before = sample("crafely_http_requests_total", **labels)
    for n in range(3):
        await client.get(f"/fine/{n}")
    assert sample("crafely_http_requests_total", **labels) == before + 3
    assert sample("crafely_http_request_duration_seconds_count", route="/fine/{id}") >= 3
    assert sample("crafely_http_requests_in_flight") == 0


async def test_labels_stay_few_whatever_clients_send(client: Client) -> None:
    labels = {"method": "OTHER", "route": "(none)", "status": "404"}
    before = sample("crafely_http_requests_total", **labels)
    for n in range(3):
        await client.request("PROPFIND", f"/nowhere/{n}")
    assert sample("crafely_http_requests_total", **labels) == before + 3
