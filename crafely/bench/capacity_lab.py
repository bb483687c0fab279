"""What ``crafely bench capacity`` measures: loads on our own servers, and what each of them made everybody use.

Judged by processor time, which the kernel counts for each process: it hardly changes with what else the machine does, a
rate does. Each measurement is a load for some seconds; before and after it are read the processor time of the workers,
of all of PostgreSQL and of the client, the position in the log, and the size of usage.
"""

import asyncio
import hashlib
import random
import tracemalloc
from array import array
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from time import monotonic

import msgspec
import psycopg
from psycopg.rows import TupleRow

from crafely.auth.key_cache import Entry, KeyCache
from crafely.bench import BenchError, load, processes, usage, verify
from crafely.bench.load import COUNTER, Job, Outcome
from crafely.bench.place import execute
from crafely.bench.rounds import Sample, Side
from crafely.bench.seed import KEYS_PER_USER, Seed, key_id, row_id
from crafely.bench.servers import Address
from crafely.db.session import Database
from crafely.store import api_keys

# Keys that are presented, and those of the loads whose cache has no room for all.
KEYS, MANY_KEYS = 64, 256
# What a worker of those remembers.
SMALL_CACHE = 64
# Who records usage: one key each of so many users, and fewer with whole batches.
USERS, BATCH_USERS = 64, 16
# By Little's law: some thousand requests a second, each of which takes a millisecond or two, are about 16 at a time.
FEW_CONNECTIONS, CONNECTIONS, MANY_CONNECTIONS = 8, 16, 64
# Keys that a touch notes at once.
TOUCHED = 1000
# Requests drawn beforehand, where their order is a matter of chance.
DRAWN = 4096


class Spent(msgspec.Struct, frozen=True):
    """What one load made everybody use. Processor time in seconds."""

    lookups: int = 0
    events: int = 0
    touches: int = 0
    seconds: float = 0.0
    workers: float = 0.0
    server: float = 0.0
    client: float = 0.0
    # Processors that others kept busy meanwhile, summed over the measurements.
    others: float = 0.0
    # Bytes: of the log, of usage, of its ledger, on the network.
    wal: float = 0
    usage: float = 0
    ledger: float = 0
    network: float = 0

    @property
    def things(self) -> int:
        """All that was done."""
        return self.lookups + self.events + self.touches

    @property
    def rate(self) -> float:
        """How many of them in a second."""
        return self.things / self.seconds if self.seconds else 0.0

    def __add__(self, other: "Spent") -> "Spent":
        """Both, one after the other."""
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return Spent(*(one + another for one, another in pairs))


# Works for about so many seconds, and says what it did.
Run = Callable[[float], Awaitable[Spent]]


class Lab:
    """A database that is measured, and the processes of its server."""

    def __init__(self, connection: psycopg.Connection[TupleRow], found: Seed) -> None:
        """Takes a connection of a superuser. Raises BenchError unless its server runs on this machine, on Linux."""
        self.connection = connection
        self.found = found
        backend = connection.info.backend_pid
        if processes.program(backend) not in {"postgres", "postmaster"}:
            raise BenchError("capacity reads in /proc what PostgreSQL uses, so it must run on this machine, on Linux")
        self._postgres = processes.parent(backend)
        self.spent: dict[str, list[Spent]] = {}

    def total(self, name: str) -> Spent:
        """All rounds of a side; its warming up is no round."""
        return sum(self.spent[name][1:], Spent())

    def rounds(self, name: str) -> int:
        """How many rounds of a side there were."""
        return len(self.spent[name]) - 1

    def side(self, name: str, unit: str, run: Run, *workers: Address, group: str) -> Side:
        """A side that notes what its load made everybody use. Takes the servers that it loads."""

        async def measure(seconds: float) -> Sample:
            before, begin = self._read(workers), monotonic()
            done = await run(seconds)
            took = monotonic() - begin
            used, server, ours, busy, wal, usage_bytes, ledger = (
                after - early for early, after in zip(before, self._read(workers), strict=True)
            )
            noted = msgspec.structs.replace(
                done,
                workers=used,
                server=server,
                others=max(0.0, busy - used - server - ours) / took,
                wal=wal,
                usage=usage_bytes,
                ledger=ledger,
            )
            self.spent.setdefault(name, []).append(noted)
            return Sample(done.things, done.seconds, [])

        return Side(name, measure, group, unit)

    def _read(self, workers: Sequence[Address]) -> list[float]:
        """Seconds of the workers, of PostgreSQL, of this process and its clients, of all; and bytes written."""
        files = execute(self.connection, "counters").fetchone()
        if files is None:
            raise BenchError("the server tells nothing of what it writes")
        used = sum(processes.seconds(one.pid) for one in workers if one.pid is not None)
        ours = sum(sum(getrusage(who)[:2]) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
        return [used, processes.seconds(self._postgres), ours, processes.busy(), *(float(one) for one in files)]


def verifying(server: Address, found: Seed, numbers: Sequence[int], connections: int = CONNECTIONS) -> Run:
    """A load of verifications of the keys with these numbers, in this order, again and again."""
    requests = [verify.request(server, found.token(1), found.token(number)) for number in numbers]

    async def run(seconds: float) -> Spent:
        job = Job(
            host=server.host,
            port=server.port,
            connections=connections,
            seconds=seconds,
            requests=requests,
            needle=b'"code":"VALID"',
        )
        outcome = await load.run(job)
        return _done(outcome, lookups=_count(outcome))

    return run


def recording(server: Address, found: Seed, batch: int, connections: int, runs: "Runs") -> Run:
    """A load of requests with so many records each, all with an eventId, as a client has them that may send again."""
    users = min(USERS if batch == 1 else BATCH_USERS, found.keys // KEYS_PER_USER)
    tokens = [found.token(user * KEYS_PER_USER + 1) for user in range(users)]

    async def run(seconds: float) -> Spent:
        name = runs.next()
        bodies: list[tuple[str, object]] = []
        for number, token in enumerate(tokens * (4 if batch == 1 else 1)):
            places = range(number, number + batch)
            records = [usage.record(place, _event(name, number, place)) for place in places]
            bodies.append((token, records[0] if batch == 1 else records))
        job = usage.recording(server, bodies, seconds, connections, batch)
        outcome = await load.run(job)
        return _done(outcome, events=_count(outcome) * batch)

    return run


class Runs:
    """Names for measurements, so that no event comes twice."""

    def __init__(self, name: str = "") -> None:
        """Takes what sets them apart from others."""
        self._name = name
        self._count = 0

    def next(self) -> str:
        """One that there was not."""
        self._count += 1
        return f"{self._name}{self._count}"


def _event(run: str, number: int, position: int) -> str:
    """Begins at random, as a client's ids do: then each goes into another page of the ledger's index."""
    begin = hashlib.blake2b(f"{run} {number} {position}".encode(), digest_size=6).hexdigest()
    return f"{begin}-{COUNTER.decode()}-{position:04d}-{run}"


def together(
    *loads: Run,
) -> Run:
    """Several loads at once."""

    async def run(seconds: float) -> Spent:
        done = await asyncio.gather(*(one(seconds) for one in loads))
        return msgspec.structs.replace(sum(done, Spent()), seconds=max(one.seconds for one in done))

    return run


def touching(database: Database, found: Seed) -> Run:
    """A load of uses of keys, noted as a worker does it: many in a statement."""
    ids = sorted(row_id(number) for number in range(1, min(TOUCHED, found.keys) + 1))

    async def run(seconds: float) -> Spent:
        session = database.session("crafely_auth")
        begin, touches = monotonic(), 0
        while monotonic() < begin + seconds:
            touches += await api_keys.touch(session, ids=ids, used_at=[datetime.now(UTC)] * len(ids))
        return Spent(touches=touches, seconds=monotonic() - begin)

    return run


def _done(outcome: Outcome, *, lookups: int = 0, events: int = 0) -> Spent:
    return Spent(lookups=lookups, events=events, seconds=outcome.seconds, client=outcome.cpu, network=outcome.network)


def _count(outcome: Outcome) -> int:
    return len(outcome.latencies) // array("d").itemsize


async def remembered(database: Database, found: Seed) -> float:
    """Bytes of a worker's memory for a key that it remembers: its row, and what the cache makes of it."""
    count = min(TOUCHED, found.keys)
    key_ids = [key_id(number) for number in range(1, count + 1)]
    channel = database.channel("crafely_auth")
    await channel.open()
    try:
        await api_keys.lookup(channel, key_ids=key_ids)
        tracemalloc.start()
        cache = KeyCache(size=count, seconds=60)
        for row in await api_keys.lookup(channel, key_ids=key_ids):
            entry = Entry(cache.digest(row.key_id), row.key_id, row.hashed_key, fits=True)
            entry.read(row, monotonic())
            cache.keep(entry)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        await channel.close()
    return used / len(cache)


def drawn(keys: int, zipf: float) -> list[int]:
    """Numbers of keys, from 1, as unequal as the model has it; the same in every run."""
    chance = random.Random(keys)  # noqa: S311 - a sample, no secret
    weights = [1 / rank**zipf for rank in range(1, keys + 1)]
    return chance.choices(range(1, keys + 1), weights, k=DRAWN)
