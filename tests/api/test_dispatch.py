"""What surrounds every handler: ids, logs, metrics, problems and the time limit, over real sockets."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from crafely.api import telemetry
from crafely.api.answer import Answer
from crafely.api.router import Router
from crafely.api.wire import Call
from crafely.auth import Caller
from tests.api.conftest import lines
from tests.api.demo import Client, serving

TOKEN = "crf_live_0123456789abcdef_0123456789abcdef0123456789abcdef012345"
left = asyncio.Event()


async def fine(call: Call) -> Answer:
    call.caller = Caller(user_id="user_1", permissions=frozenset(), api_key_id="key_1")
    return Answer(200, call.values[0].encode(), "text/plain")


async def broken(call: Call) -> Answer:
    raise RuntimeError(f"the secret {TOKEN} of row 7")


async def slow(call: Call) -> Answer:
    try:
        await asyncio.sleep(60)
    finally:
        left.set()
    raise AssertionError("the time limit did not come")


async def stubborn(call: Call) -> Answer:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return Answer(200, b"done all the same", "text/plain")
    raise AssertionError("the time limit did not come")


async def patient(call: Call) -> Answer:
    raise TimeoutError


async def disconnected(call: Call) -> Answer:
    raise psycopg.OperationalError("connection to server at 10.0.0.7 failed")


async def reading(call: Call) -> Answer:
    return Answer(200, await call.request.read())


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    router = Router()
    router.add("GET", "/fine/{id}", fine)
    for handler in (broken, slow, stubborn, patient, disconnected):
        router.add("GET", f"/{handler.__name__}", handler)
    router.add("POST", "/reading", reading)
    left.clear()
    async with serving(router, seconds=0.2) as client:
        yield client


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
    assert lines(log) == []


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
    assert left.is_set()


async def test_a_handler_that_ends_in_spite_of_its_limit_is_heard(client: Client) -> None:
    assert await (await client.get("/stubborn")).text() == "done all the same"


async def test_nothing_is_left_of_the_cancellation(client: Client) -> None:
    # The connection goes on: what comes next on it is answered, and can wait.
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    for path in (b"/slow", b"/slow", b"/fine/1"):
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].split()[0])
        await reader.readexactly(length)
        assert head.split()[1] == (b"200" if path == b"/fine/1" else b"503")
        assert b"Connection" not in head
    writer.close()
    await writer.wait_closed()


async def test_deadlines_forget_what_has_ended(client: Client) -> None:
    await client.get("/slow")
    await client.get("/fine/1")
    assert isinstance(telemetry.requests.in_flight, dict)
    assert not telemetry.requests.in_flight


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


async def test_a_client_that_leaves_amid_its_body_is_no_failure_of_ours(client: Client, log: io.StringIO) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /reading HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf of")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    for _ in range(500):
        if lines(log):
            break
        await asyncio.sleep(0.01)
    [line] = lines(log)
    assert (line["logger"], line["status"]) == ("crafely.access", 499)


async def test_what_is_not_http_is_a_problem_and_one_line_in_the_log(client: Client, log: io.StringIO) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"GET /fine/1 HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (400, "bad_request")
    assert f"X-Request-Id: {problem['requestId']}\r\n".encode() in head
    assert b"Content-Type: application/problem+json\r\n" in head
    assert b"Connection: close" in head
    [line] = lines(log)
    assert (line["level"], line["status"], line["requestId"]) == ("info", 400, problem["requestId"])
