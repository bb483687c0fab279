"""The load client, on a server that answers what a test wants."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from crafely.bench import BenchError, load
from crafely.bench.load import COUNTER, Job

Answer = Callable[[bytes], bytes]


class Server:
    def __init__(self, answer: Answer) -> None:
        self.seen: list[bytes] = []
        self.connections = 0
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while head := await reader.read(65536):
            self.seen.append(head)
            answer = self._answer(head)
            # In pieces, as a network may deliver them.
            for part in (answer[:10], answer[10:]):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Job]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        request = load.request("POST", "/", host, "token", b'{"n": "' + COUNTER + b'"}')
        yield Job(host=host, port=port, connections=4, seconds=0.1, requests=[request], needle=b"yes")
        server.close()


def says(body: bytes, status: int = 200) -> Answer:
    head = b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    return lambda _: head + body


async def test_every_answer_is_counted_and_every_request_is_its_own() -> None:
    server = Server(says(b"yes"))
    async with server.running() as job:
        sample = await load.measure(job, events=3)
    assert sample.count == 3 * len(server.seen) > 0
    assert len(sample.latencies) == len(server.seen)
    assert server.connections == 4
    assert len(set(server.seen)) == len(server.seen)
    assert COUNTER not in b"".join(server.seen)


@pytest.mark.parametrize("answer", [says(b"no"), says(b"yes", 500)])
async def test_a_wrong_answer_ends_it(answer: Answer) -> None:
    sometimes = iter(range(10**6))
    right = says(b"yes")
    server = Server(lambda request: answer(request) if next(sometimes) == 10 else right(request))
    async with server.running() as job:
        with pytest.raises(BenchError, match="1 answers were wrong, one of them: 'HTTP"):
            await load.measure(job)


async def test_a_server_that_is_not_there_ends_it() -> None:
    job = Job(host="127.0.0.1", port=1, connections=1, seconds=0.1, requests=[b""])
    with pytest.raises(BenchError, match="the load client failed"):
        await load.measure(job)


async def test_bursts_come_on_connections_of_their_own_and_are_told_apart() -> None:
    server = Server(lambda request: says(b"cold" if b"burst" in request else b"yes")(request))
    async with server.running() as job:
        bursts = [load.request("POST", "/", job.host, "token", b"burst%d" % number) for number in range(6)]
        outcome = await load.run(msgspec.structs.replace(job, bursts=bursts, burst=3, burst_needle=b"cold"))
        with pytest.raises(BenchError, match="wrong"):
            await load.run(msgspec.structs.replace(job, bursts=bursts, burst=3, burst_needle=b"warm"))
    assert outcome.bursts == 2
    assert 0 < len(outcome.during_bursts) < len(outcome.latencies)


def test_where_an_answer_ends() -> None:
    assert load.answer_size(b"HTTP/1.1 200 OK\r\nContent-Le") is None
    assert load.answer_size(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes") == 41
    assert load.answer_size(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n") == 41
    assert load.answer_size(b"HTTP/1.1 204 No Content\r\n\r\n") == 27
