"""The load client: requests made beforehand, on connections that stay open, each waiting for its answer.

It runs as a process of its own (``python -m crafely.bench.load``) and does as little as it can for a request, since it
shares the machine with what it measures: it writes bytes, finds the end of the answer, and looks for one text in it.
"""

import asyncio
import sys
import time
from array import array
from typing import Any

import msgspec
import uvloop

from crafely.bench import BenchError
from crafely.bench.rounds import Sample

# Where a request holds this, it gets a number that no other request of the job has.
COUNTER = b"@@@@@@@@@@@@"
# Longer than any server may take for one request.
SILENCE = 30.0
MAX_EXAMPLE = 300


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a load client is told."""

    host: str
    port: int
    connections: int
    seconds: float
    requests: list[bytes]
    # The first line that an answer must have, and what must stand in it.
    status: int = 200
    needle: bytes = b""
    # Requests that arrive all at once, each on a connection of its own, again and again: ``burst`` of them at a time.
    bursts: list[bytes] = []
    burst: int = 64
    burst_needle: bytes = b""


class Outcome(msgspec.Struct, frozen=True):
    """What it found. Latencies are seconds, as doubles."""

    seconds: float
    latencies: bytes
    wrong: int
    # One of the wrong answers.
    example: str
    # Those of ``latencies`` that fell into a burst.
    during_bursts: bytes
    bursts: int
    # Processor seconds of the client, and bytes on its connections, there and back.
    cpu: float
    network: int


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request, until the time is over."""

    def __init__(self, client: "_Client", position: int, done: "asyncio.Future[None]") -> None:
        self._client = client
        self._position = position
        self._done = done
        self._buffer = b""
        self._begin = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self) -> None:
        client = self._client
        request = client.requests[self._position % len(client.requests)]
        self._position += 1
        if client.counting:
            client.counter += 1
            request = request.replace(COUNTER, b"%012d" % client.counter)
        self._waiting = True
        client.network += len(request)
        self._begin = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        size = answer_size(data)
        if size is None or len(data) < size:
            self._buffer = data
            return
        self._buffer = b""
        self._waiting = False
        now = time.perf_counter()
        client = self._client
        client.network += size
        if data.startswith(client.status) and client.needle in data:
            client.latencies.append(now - self._begin)
            if client.in_burst or self._begin < client.burst_end:
                client.during_bursts.append(now - self._begin)
        else:
            client.wrong += 1
            client.example = client.example or data[:MAX_EXAMPLE]
        if now < client.end:
            self.send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting:
            self._client.wrong += 1
            self._client.example = self._client.example or f"the connection was closed: {error}".encode()
        if not self._done.done():
            self._done.set_result(None)


def answer_size(data: bytes) -> int | None:
    """The length of the answer that data begins with; None where its header is not all there."""
    header = data.find(b"\r\n\r\n")
    if header < 0:
        return None
    at = data.find(b"Content-Length: ", 0, header)
    if at < 0:
        # As other servers may write it; without one there is no body.
        at = data[:header].lower().find(b"content-length: ")
    return header + 4 + (int(data[at + 16 : data.index(b"\r", at)]) if at >= 0 else 0)


class _Client:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.requests = job.requests
        self.counting = any(COUNTER in request for request in job.requests)
        self.counter = 0
        self.status = b"HTTP/1.1 %d " % job.status
        self.needle = job.needle
        self.latencies = array("d")
        self.during_bursts = array("d")
        self.wrong = 0
        self.example = b""
        self.in_burst = False
        # When the last burst was over: a request that began before has met it.
        self.burst_end = 0.0
        self.bursts = 0
        self.network = 0
        self.end = float("inf")

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        job = self.job
        done = [loop.create_future() for _ in range(job.connections)]
        connections = []
        for number, future in enumerate(done):
            # Each begins at another request, so that they do not all ask for the same.
            position = number * len(job.requests) // job.connections

            def make(position: int = position, future: "asyncio.Future[None]" = future) -> _Connection:
                return _Connection(self, position, future)

            connections.append((await loop.create_connection(make, job.host, job.port))[1])
        begin, cpu = time.perf_counter(), time.process_time()
        self.end = begin + job.seconds
        for connection in connections:
            connection.send()
        bursting = loop.create_task(self._burst()) if job.bursts else None
        await asyncio.wait_for(asyncio.gather(*done), job.seconds + SILENCE)
        seconds = time.perf_counter() - begin
        if bursting is not None:
            await bursting
        return Outcome(
            seconds=seconds,
            latencies=self.latencies.tobytes(),
            wrong=self.wrong,
            example=self.example.decode(errors="replace"),
            during_bursts=self.during_bursts.tobytes(),
            bursts=self.bursts,
            cpu=time.process_time() - cpu,
            network=self.network,
        )

    async def _burst(self) -> None:
        """Sends bursts, with as long a pause after each as it took."""
        job = self.job
        for first in range(0, len(job.bursts) - job.burst + 1, job.burst):
            streams = [await asyncio.open_connection(job.host, job.port) for _ in range(job.burst)]
            begin = time.perf_counter()
            if begin >= self.end:
                return
            self.in_burst = True
            for (_, writer), request in zip(streams, job.bursts[first : first + job.burst], strict=True):
                writer.write(request)
            for reader, writer in streams:
                answer = await self._whole(reader)
                if job.burst_needle not in answer:
                    self.wrong += 1
                    self.example = self.example or answer[:MAX_EXAMPLE]
                writer.close()
            self.in_burst = False
            self.burst_end = time.perf_counter()
            self.bursts += 1
            await asyncio.sleep(self.burst_end - begin)

    @staticmethod
    async def _whole(reader: asyncio.StreamReader) -> bytes:
        data = b""
        while (size := answer_size(data)) is None or len(data) < size:
            if not (more := await reader.read(65536)):
                break
            data += more
        return data


async def run(job: Job) -> Outcome:
    """Has a process do the job. Raises BenchError when it fails or an answer was wrong."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate(msgspec.msgpack.encode(job))
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise BenchError(f"the load client failed with exit code {process.returncode}")
    outcome = msgspec.msgpack.decode(output, type=Outcome)
    if outcome.wrong:
        raise BenchError(f"{outcome.wrong} answers were wrong, one of them: {outcome.example!r}")
    return outcome


async def measure(job: Job, *, events: int = 1, during_bursts: bool = False) -> Sample:
    """A sample of a job: so many events for each request. Raises BenchError."""
    outcome = await run(job)
    latencies = array("d", outcome.latencies)
    wanted = array("d", outcome.during_bursts) if during_bursts else latencies
    return Sample(len(latencies) * events, outcome.seconds, wanted.tolist())


def request(method: str, path: str, host: str, token: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {token}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def main() -> None:
    """Reads a job from standard input, does it, and writes what came of it."""
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    try:
        outcome = uvloop.run(_Client(job).run())
    except KeyboardInterrupt:
        # Ctrl-C in a terminal is for the bench, which says what there is to say.
        sys.exit(130)
    sys.stdout.buffer.write(msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
