"""``crafely bench capacity``: what a load needs, from what a request, an event and a row cost on this machine.

Costs are measured in short rounds, in turn; ``capacity_model.py`` makes workers, replicas and shards of them. In the
same rounds other loads are measured that no cost was taken from, and what the model says of these is held against them.
"""

import statistics
from contextlib import AsyncExitStack

import msgspec
import psycopg
import uvloop
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from rich.progress import Progress

from crafely.bench import BenchError, capacity_model, processes, servers
from crafely.bench.capacity_lab import (
    CONNECTIONS,
    FEW_CONNECTIONS,
    KEYS,
    MANY_CONNECTIONS,
    MANY_KEYS,
    SMALL_CACHE,
    Lab,
    Runs,
    drawn,
    recording,
    remembered,
    together,
    touching,
    verifying,
)
from crafely.bench.capacity_model import per_event, shares, verify_worker
from crafely.bench.capacity_terms import Capacity, Costs, Load, Machine, Point
from crafely.bench.place import Place, execute
from crafely.bench.report import Bound, Report, facts, results
from crafely.bench.rounds import Measured, Plan, Side, interleave
from crafely.bench.seed import key_id, seed
from crafely.bench.servers import Address
from crafely.bench.verify import LIMITS
from crafely.config import Settings
from crafely.db.session import Database, connect

HIT, READ, COLD = "a key from memory", "a key's row read", "a key's row read and hashed"
SINGLE, FEW, MANY = "an event alone", "an event in a batch of 10", "an event in a batch of 1,000"
TOUCH = "a use of a key noted"
TWO, TWO_FEW = "two workers, 64 connections", "two workers, 16 connections"
ZIPF, BELIEVED = "a cache for a quarter of the keys", "rows believed for 10 ms"
MIXED, HUNDRED = "lookups and events at once", "an event in a batch of 100"
FEW_BATCH, SOME_BATCH, MANY_BATCH = 10, 100, 1000
BATCH_CONNECTIONS = 4
# What the bench calls its own connections.
OURS = "crafely bench capacity"
BELIEVED_SECONDS = 0.01
SKEW = 1.07
# What a worker remembers, unless a load is about just that: all keys, longer than it is measured.
CACHE = {"key_cache_size": "100000", "key_cache_seconds": "3600"}
# Keys that are revoked and restored, to see what the trail writes.
CHANGED = 500
# How many times as many keys the other table has.
TIMES = 10
# By how much a prediction may be off, in either direction. Processor time of the same work differs by a tenth from run
# to run, and by more with how many requests arrive together, which the model does not know; what that comes to is well
# under the headroom that a plan has. Bytes are counted, not timed.
CORES, BYTES = 1.4, 1.1


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    load: Load = Load()
    machine: Machine = Machine()
    rows: int = 100_000
    plan: Plan = Plan(rounds=3)


class _Memory(msgspec.Struct):
    """What is looked at once. Bytes."""

    worker: float = 0
    key: float = 0
    backend: float = 0
    connections: float = 0


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Seeds what is missing, measures, and answers."""
    # Of two sizes, as they were filled: where loads are measured keys are changed, which leaves room in their pages.
    sizes = [_size_of_keys(place, settings, rows, progress) for rows in (options.rows, options.rows * TIMES)]
    url = place.database(f"capacity_{options.rows}")
    found = seed(url, settings, progress, keys=options.rows)
    with connect(url) as connection:
        execute(connection, "clear_usage")
        disk = (sizes[0] / options.rows, *_disk(connection, options.rows))
        circumstances = facts(url, {"api_keys": options.rows})
        lab = Lab(connection, found)
        memory = _Memory()
        measured = uvloop.run(_measure(url, lab, settings, memory, options.plan, progress))
    costs = _costs(lab, disk, memory)
    points = [*_points(lab, costs), _larger(costs, options.rows * TIMES, sizes[1])]
    answered = capacity_model.answered(options.load, costs, options.machine, points)
    return report(answered, Report(command="capacity", facts=circumstances, plan=options.plan, sides=results(measured)))


def report(answered: Capacity, of: Report) -> Report:
    """A report with an answer in it. Takes the report of a measurement, which may have been another load's."""
    bounds = [
        Bound(f"{p.name}, {p.unit}: off by", "<=", BYTES if p.counted else CORES, p.factor) for p in answered.points
    ]
    return msgspec.structs.replace(of, capacity=answered, bounds=bounds, notes=_notes(answered))


def _notes(answered: Capacity) -> list[str]:
    load, machine, need, costs = answered.load, answered.machine, answered.answer.demand, answered.costs
    planned = (
        f"Planned for {machine.utilization:.0%} of a machine's {machine.cores} processors, of "
        f"{machine.wal / 1e6:,.0f} MB/s of log and of {machine.disk / 1e12:g} TB of disk: what a network and other "
        "machines do was not measured. Processors are assumed as quick as those here."
    )
    assumed = (
        f"Assumed: {machine.coordinator:.0%} of the cost of usage stays on the coordinator of Citus; "
        f"{machine.daily_groups} rows of daily sums for a user and day, kept for {machine.years:g} years; one "
        "change of a key a year; every record has an eventId; users and keys reach every worker alike."
    )
    spares = (
        "Beyond one machine every primary and shard is counted with a standby, for failover. Standbys take lists and "
        "sums (CRAFELY_REPLICA_URL), which are no part of this load, and no lookups. Spare workers are not counted."
    )
    notes = [planned, assumed, spares]
    hashing = load.lookups * need.shares.cold * costs.cold_worker
    if load.hit_rate is None and hashing > need.worker_cores / 2:
        notes.append(
            f"{hashing / need.worker_cores:.0%} of what workers do is hashing secrets that they have forgotten. With "
            f"CRAFELY_KEY_CACHE_SIZE={load.keys} none would, for {load.keys * costs.key_memory / 1e6:,.0f} MB of each."
        )
    return notes


async def _measure(
    url: str, lab: Lab, settings: Settings, memory: _Memory, plan: Plan, progress: Progress
) -> list[Measured]:
    async with AsyncExitStack() as stack:

        async def server(workers: int = 1, **said: str) -> Address:
            return await stack.enter_async_context(servers.crafely(url, workers=workers, **LIMITS, **CACHE | said))

        ours = await server()
        # Before it has served anybody.
        memory.worker = processes.memory(ours.pid or 0, "VmRSS")
        reading = await server(key_cache_seconds="0")
        small = await server(key_cache_size=str(SMALL_CACHE))
        believing = await server(key_cache_seconds=str(BELIEVED_SECONDS))
        two = await server(workers=2)
        named = make_conninfo(url, application_name=OURS)
        database = Database(named, size=2, pool_timeout=30, statement_timeout=settings.statement_timeout)
        await database.open()
        try:
            memory.key = await remembered(database, lab.found)
            sides = _sides(lab, database, ours, reading, small)
            sides += _others(lab, ours, small, believing, two)
            # Each key is presented once, so that none is new when it is measured; two workers may need to see it twice.
            for address in (ours, reading, believing, two, two, two):
                await verifying(address, lab.found, _numbers(lab), len(_numbers(lab)))(0)
            measured = await interleave(sides, plan, progress)
        finally:
            await database.close()
        pids = [int(pid) for (pid,) in execute(lab.connection, "backends", OURS).fetchall()]
        # Five servers, one of which has two workers.
        memory.connections = len(pids) / 6
        memory.backend = statistics.mean(found for pid in pids if (found := processes.memory(pid, "RssAnon")))
        return measured


def _numbers(lab: Lab, most: int = KEYS) -> range:
    return range(1, min(most, lab.found.keys) + 1)


def _sides(lab: Lab, database: Database, ours: Address, reading: Address, small: Address) -> list[Side]:
    """What costs are taken from."""
    found, runs, group = lab.found, Runs(), "costs"

    def events(name: str, batch: int, connections: int = BATCH_CONNECTIONS) -> Side:
        return lab.side(name, "events/s", recording(ours, found, batch, connections, runs), ours, group=group)

    def lookups(name: str, server: Address, numbers: range, connections: int = CONNECTIONS) -> Side:
        return lab.side(name, "lookups/s", verifying(server, found, numbers, connections), server, group=group)

    return [
        lookups(HIT, ours, _numbers(lab)),
        # Few at a time: most requests are answered from memory, and so few rows are read together.
        lookups(READ, reading, _numbers(lab), FEW_CONNECTIONS),
        # In turn: when a key comes again, a cache of a quarter of them has forgotten it.
        lookups(COLD, small, _numbers(lab, MANY_KEYS)),
        events(SINGLE, 1, CONNECTIONS),
        events(FEW, FEW_BATCH),
        events(MANY, MANY_BATCH),
        lab.side(TOUCH, "touches/s", touching(database, found), group=group),
    ]


def _others(lab: Lab, ours: Address, small: Address, believing: Address, two: Address) -> list[Side]:
    """What the model is held against."""
    found, runs = lab.found, Runs("other")
    many, few = len(_numbers(lab, MANY_KEYS)), len(_numbers(lab))
    warm = _numbers(lab)
    mixed = together(verifying(ours, found, warm), recording(ours, found, 1, CONNECTIONS, runs))
    hundred = recording(ours, found, SOME_BATCH, BATCH_CONNECTIONS, runs)
    # Fewer at a time: of those who wait for the same key all but one would pay nothing.
    unequal = verifying(small, found, drawn(many, SKEW), CONNECTIONS // 2)
    return [
        lab.side(TWO, "lookups/s", verifying(two, found, warm, MANY_CONNECTIONS), two, group="points"),
        lab.side(TWO_FEW, "lookups/s", verifying(two, found, warm), two, group="points"),
        lab.side(ZIPF, "lookups/s", unequal, small, group="points"),
        lab.side(BELIEVED, "lookups/s", verifying(believing, found, drawn(few, 0)), believing, group="points"),
        lab.side(MIXED, "lookups and events/s", mixed, ours, group="points"),
        lab.side(HUNDRED, "events/s", hundred, ours, group="points"),
    ]


def _costs(lab: Lab, disk: tuple[float, float, float], memory: _Memory) -> Costs:
    """Costs of one thing each: sums over all rounds, divided by how many were done in them."""
    hit, read, cold, single, few, many, touch = (
        lab.total(name) for name in (HIT, READ, COLD, SINGLE, FEW, MANY, TOUCH)
    )
    if not all((hit.workers, cold.workers, read.server, single.server, many.server, many.workers, touch.server)):
        raise BenchError("the kernel counts processor time in hundredths of a second: measure for longer, --seconds")
    worker = _line(few.workers / few.events, many.workers / many.events)
    server = _line(few.server / few.events, many.server / many.events)
    wal = _line(few.wal / few.events, many.wal / many.events)
    network = _line(few.network / few.events, many.network / many.events)
    hit_worker = hit.workers / hit.lookups
    # A longer way cannot cost less, though a short measurement may say so.
    read_worker = max(hit_worker, read.workers / read.lookups)
    return Costs(
        hit_worker=hit_worker,
        read_worker=read_worker,
        cold_worker=max(read_worker, cold.workers / cold.lookups),
        read_server=read.server / read.lookups,
        single_worker=single.workers / single.events,
        event_worker=worker[0],
        batch_worker=worker[1],
        single_server=single.server / single.events,
        event_server=server[0],
        batch_server=server[1],
        touch_server=touch.server / touch.touches,
        single_wal=single.wal / single.events,
        event_wal=wal[0],
        batch_wal=wal[1],
        touch_wal=touch.wal / touch.touches,
        key_disk=disk[0],
        usage_disk=many.usage / many.events,
        ledger_disk=many.ledger / many.events,
        daily_disk=disk[1],
        audit_disk=disk[2],
        worker_memory=memory.worker,
        key_memory=memory.key,
        backend_memory=memory.backend,
        connections=memory.connections,
        verify_network=hit.network / hit.lookups,
        single_network=single.network / single.events,
        event_network=network[0],
        batch_network=network[1],
    )


def _line(few: float, many: float) -> tuple[float, float]:
    """What an event costs, and what its batch does besides, from an event's cost in batches of two sizes."""
    request = max(0.0, (few - many) / (1 / FEW_BATCH - 1 / MANY_BATCH))
    return max(0.0, many - request / MANY_BATCH), request


def _points(lab: Lab, costs: Costs) -> list[Point]:
    """What the model says of the other loads, at the rate that each of them had, and what they took."""
    hit = lab.total(HIT)
    two, two_few, zipf, believed, mixed, hundred = (
        lab.total(name) for name in (TWO, TWO_FEW, ZIPF, BELIEVED, MIXED, HUNDRED)
    )
    # The slowest of: two workers, one client, and what others leave of the machine for all three.
    left = max(0.0, processes.cpus() - two.others / lab.rounds(TWO))
    client = hit.client / hit.lookups
    most = min(2 / costs.hit_worker, 1 / client, left / (costs.hit_worker + client + hit.server / hit.lookups))
    # The caller's own key has one place of the cache.
    keys = len(_numbers(lab, MANY_KEYS))
    unequal = shares(Load(keys=keys, lookups=zipf.rate, zipf=SKEW), Machine(key_cache_size=SMALL_CACHE - 1), 1)
    some = Load(keys=len(_numbers(lab)), lookups=believed.rate, zipf=0)
    half = shares(some, Machine(key_cache_seconds=BELIEVED_SECONDS), 1)
    mix_worker = mixed.lookups * costs.hit_worker + mixed.events * costs.single_worker
    worker = per_event(SOME_BATCH, costs.single_worker, costs.event_worker, costs.batch_worker)
    server = per_event(SOME_BATCH, costs.single_server, costs.event_server, costs.batch_server)
    wal = per_event(SOME_BATCH, costs.single_wal, costs.event_wal, costs.batch_wal)
    cores = [
        (TWO_FEW, "workers", two_few, two_few.lookups * costs.hit_worker, two_few.workers),
        (ZIPF, "workers", zipf, zipf.lookups * verify_worker(costs, unequal), zipf.workers),
        (BELIEVED, "workers", believed, believed.lookups * verify_worker(costs, half), believed.workers),
        (BELIEVED, "PostgreSQL", believed, believed.lookups * half.read * costs.read_server, believed.server),
        (MIXED, "workers", mixed, mix_worker, mixed.workers),
        (MIXED, "PostgreSQL", mixed, mixed.events * costs.single_server, mixed.server),
        (HUNDRED, "workers", hundred, hundred.events * worker, hundred.workers),
        (HUNDRED, "PostgreSQL", hundred, hundred.events * server, hundred.server),
    ]
    written = f"{hundred.events:,} events in batches of {SOME_BATCH}"
    return [
        Point(f"{TWO}, as much as they can", "lookups/s", most, two.rate),
        *(
            Point(f"{name}: {who}", "processors", said / s.seconds, seen / s.seconds)
            for name, who, s, said, seen in cores
        ),
        Point(f"{written}: log", "bytes", hundred.events * wal, hundred.wal),
        Point(f"{written}: usage on disk", "bytes", hundred.events * costs.usage_disk, hundred.usage),
        Point(f"{written}: ledger on disk", "bytes", hundred.events * costs.ledger_disk, hundred.ledger),
    ]


def _size_of_keys(place: Place, settings: Settings, rows: int, progress: Progress) -> float:
    """Bytes of so many keys on disk, with all indexes."""
    url = place.database(str(rows))
    seed(url, settings, progress, keys=rows)
    with connect(url) as connection:
        return _sizes(connection)[0]


def _disk(connection: psycopg.Connection[TupleRow], rows: int) -> tuple[float, float]:
    """Bytes of a row of usage_daily and of audit_log, with its part of the indexes."""
    before = _sizes(connection)
    changed = [key_id(number) for number in range(1, min(CHANGED, rows) + 1)]
    execute(connection, "fill_daily")
    execute(connection, "revoke_some", changed)
    execute(connection, "restore_keys")
    _, daily, sums, trail, audited = (a - b for a, b in zip(_sizes(connection), before, strict=True))
    execute(connection, "clear_usage")
    return daily / sums, trail / audited


def _sizes(connection: psycopg.Connection[TupleRow]) -> list[float]:
    """Bytes of all keys; bytes and rows of the daily sums, and of the audit trail."""
    row = execute(connection, "sizes").fetchone()
    if row is None:
        raise BenchError("the server tells no sizes")
    return [float(one) for one in row]


def _larger(costs: Costs, rows: int, size: float) -> Point:
    return Point(f"{rows:,} keys on disk, {TIMES} times as many", "bytes", rows * costs.key_disk, size)
