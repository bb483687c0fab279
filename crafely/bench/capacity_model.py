"""How many workers, replicas and shards a load needs, from what one request, event and row cost on one machine.

Plain arithmetic, and the formulas stand beside it:

    utilization     busy processors = what comes in a second × processor seconds of each (the utilization law); full is
                    ``utilization`` of a machine's processors, since queues grow without bound towards all of them
    a worker        one process, so one processor, with a cache of keys of its own
    a primary       every write: uses of keys, usage; one stream of WAL; and the rows of keys that no worker remembers
    replicas        a standby of each primary and shard, for failover; they take lists and sums, which are not counted
    shards          usage by user (Citus): what usage costs, but for the coordinator's part

Units: seconds of one processor, bytes, and things a second. No number here is measured; see ``capacity.py``.
Sources: Denning and Buzen, The operational analysis of queueing network models, ACM Computing Surveys 10 (1978) 3; Che,
Tung and Wang, Hierarchical Web caching systems, IEEE JSAC 20 (2002) 7, for how much a cache of a size remembers.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import msgspec

from crafely.bench.capacity_terms import Answer, Capacity, Costs, Demand, Limit, Line, Load, Machine, Point, Shares

MONTH = 365.25 / 12 * 86_400
DAYS = 365.25 / 12
# As the API keeps house: seconds between two writings of which keys were used, and the most keys of one; days that an
# event id is remembered.
TOUCH_SECONDS, TOUCHES = 5.0, 100_000
LEDGER_DAYS = 40
# Ranks that are one bin of the distribution of keys: this much apart.
_BIN = 1.1
# The largest multiple of a load that is looked at.
_FAR = 1e9


def per_event(batch: int, single: float, event: float, request: float) -> float:
    """What one event costs in a batch of so many: its own, and its part of the request's. Alone it is coalesced."""
    return single if batch == 1 else event + request / batch


@lru_cache(maxsize=64)
def bins(keys: int, zipf: float) -> tuple[tuple[float, float], ...]:
    """Keys of about the same use: pairs of how many they are, and the share of the uses that each one has.

    The share of rank r is r^-zipf / (1^-zipf + … + keys^-zipf); ranks far down are taken together.
    """
    found, first = [], 1
    while first <= keys:
        last = keys if zipf == 0 else min(keys, max(first, int(first * _BIN)))
        count = last - first + 1
        found.append((float(count), math.exp(-zipf * (math.log(first) + math.log(last)) / 2)))
        first = last + 1
    total = sum(count * weight for count, weight in found)
    return tuple((count, weight / total) for count, weight in found)


@lru_cache(maxsize=64)
def horizon(keys: int, zipf: float, size: int) -> float:
    """How many requests back a cache of a size remembers (Che): the N with Σ (1 - e^(-share × N)) = size."""
    if keys <= size:
        return math.inf
    low, high = 0.0, 1.0
    while _distinct(keys, zipf, high) < size:
        low, high = high, high * 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _distinct(keys, zipf, middle) < size else (low, middle)
    return high


def _distinct(keys: int, zipf: float, requests: float) -> float:
    """How many different keys are among so many requests."""
    return sum(count * -math.expm1(-share * requests) for count, share in bins(keys, zipf))


def shares(load: Load, machine: Machine, workers: float) -> Shares:
    """How verifications are answered when each of so many workers gets its part of them.

    Of a key with rate q in a worker, whose row is believed for T, one of 1 + qT is read; it is remembered at all with
    1 - e^(-share × horizon), which is all keys where they have room.
    """
    if load.hit_rate is not None:
        return Shares(load.hit_rate, 0.0, 1 - load.hit_rate)
    back = horizon(load.keys, load.zipf, machine.key_cache_size)
    believed = load.lookups / workers * machine.key_cache_seconds
    hit = known = 0.0
    for count, share in bins(load.keys, load.zipf):
        remembered = -math.expm1(-share * back)
        known += count * share * remembered
        hit += count * share * min(share * believed / (1 + share * believed), remembered)
    return Shares(hit, max(known - hit, 0.0), max(1 - known, 0.0))


def verify_worker(costs: Costs, found: Shares) -> float:
    """Seconds of a worker's processor for a verification."""
    return found.hit * costs.hit_worker + found.read * costs.read_worker + found.cold * costs.cold_worker


def demand(load: Load, costs: Costs, machine: Machine) -> Demand:
    """What a load keeps busy.

    The more workers, the fewer uses of a key each of them sees, and the more often its row is read: so they are counted
    again with what the last count gives. That only grows, and not beyond what reading every row would take.
    """
    event = per_event(load.event_batch, costs.single_worker, costs.event_worker, costs.batch_worker)
    workers = 1
    while True:
        found = shares(load, machine, workers)
        busy = load.lookups * verify_worker(costs, found) + load.events * event
        needed = max(1, math.ceil(busy / machine.utilization))
        if needed <= workers:
            break
        workers = needed
    # Each worker writes once in a while which keys it saw used.
    used = _distinct(load.keys, load.zipf, load.lookups / workers * TOUCH_SECONDS)
    touches = workers * min(used, TOUCHES) / TOUCH_SECONDS
    record = per_event(load.event_batch, costs.single_server, costs.event_server, costs.batch_server)
    wal = per_event(load.event_batch, costs.single_wal, costs.event_wal, costs.batch_wal)
    network = per_event(load.event_batch, costs.single_network, costs.event_network, costs.batch_network)
    kept = load.events * MONTH * load.retention_months
    # Sums outlive what they sum.
    months = max(load.retention_months, machine.years * 12)
    sums = min(load.events * MONTH, load.users * machine.daily_groups * DAYS) * months
    audited = load.keys * (1 + machine.key_changes * load.retention_months / 12)
    return Demand(
        shares=found,
        workers=workers,
        worker_cores=busy,
        read_cores=load.lookups * (found.read + found.cold) * costs.read_server,
        touch_cores=touches * costs.touch_server,
        record_cores=load.events * record,
        touch_wal=touches * costs.touch_wal,
        record_wal=load.events * wal,
        key_disk=load.keys * costs.key_disk + audited * costs.audit_disk,
        usage_disk=kept * costs.usage_disk
        + min(kept, load.events * LEDGER_DAYS * 86_400) * costs.ledger_disk
        + sums * costs.daily_disk,
        worker_memory=workers * (costs.worker_memory + min(load.keys, machine.key_cache_size) * costs.key_memory),
        database_memory=workers * costs.connections * costs.backend_memory + load.keys * costs.key_disk,
        connections=workers * costs.connections,
        network=8 * (load.lookups * costs.verify_network + load.events * network),
    )


def plan(load: Load, costs: Costs, machine: Machine) -> Answer:
    """What a load needs: first one machine, then a primary with a standby, then shards, then several databases."""
    need = demand(load, costs, machine)
    full, log = machine.cores * machine.utilization, machine.wal * machine.utilization
    disk = machine.disk * machine.utilization
    fits = need.touch_wal + need.record_wal <= log and need.key_disk + need.usage_disk <= disk
    if fits and need.worker_cores + need.server_cores <= full:
        return Answer("one machine", need.workers, 0, 1, 0, 0, "", 1, need.connections > machine.max_connections, need)
    # Usage leaves the primary when it does not fit beside the rest. Rows of keys never do: a standby may not have heard
    # yet that a key was revoked.
    shards, shards_for = 0, ""
    if load.events and (not fits or need.server_cores > full):
        parts = {"processors": need.record_cores / full, "log": need.record_wal / log, "disk": need.usage_disk / disk}
        shards_for = max(parts, key=lambda name: parts[name])
        shards = max(2, math.ceil(parts[shards_for]))
    stays = machine.coordinator if shards else 1
    busy = need.read_cores + need.touch_cores + need.record_cores * stays
    # Usage that has stayed fits: what may be too much for one log is what notes the uses of keys.
    databases = max(1, math.ceil(busy / full), math.ceil(need.touch_wal / log), math.ceil(need.key_disk / disk))
    replicas = databases + shards
    apart = math.ceil(need.worker_cores / full)
    return Answer(
        tier="Citus" if shards else "primary",
        workers=need.workers,
        worker_machines=apart,
        databases=databases,
        replicas=replicas,
        shards=shards,
        shards_for=shards_for,
        machines=apart + databases + replicas + shards,
        pooler=need.connections > machine.max_connections,
        demand=need,
    )


def _used_up(machine: Machine) -> list[tuple[str, Callable[[Demand], float], str]]:
    """What ends, how much of it a demand uses (1: all), and what to do then."""
    cores, part = machine.cores, machine.coordinator
    return [
        ("one worker", lambda d: d.worker_cores, "more workers: CRAFELY_WORKERS"),
        (
            f"one machine of {cores} processors with everything on it",
            lambda d: (d.worker_cores + d.server_cores) / cores,
            "workers on machines of their own, the database on its own",
        ),
        ("the primary's connections", lambda d: d.connections / machine.max_connections, "a pooler before it"),
        ("the primary's processors", lambda d: d.server_cores / cores, "Citus for usage; standbys take lists and sums"),
        ("the primary's log", lambda d: (d.touch_wal + d.record_wal) / machine.wal, "Citus for usage"),
        (
            "the primary's disk",
            lambda d: (d.key_disk + d.usage_disk) / machine.disk,
            "Citus for usage, or a shorter retention",
        ),
        (
            "the coordinator's processors",
            lambda d: (d.read_cores + d.touch_cores + d.record_cores * part) / cores,
            "users divided among several databases",
        ),
        ("the coordinator's log", lambda d: d.touch_wal / machine.wal, "users divided among several databases"),
    ]


def limits(load: Load, costs: Costs, machine: Machine) -> list[Limit]:
    """What is used up, wholly, as this load grows or shrinks in proportion, in the order in which it comes.

    Keys, users and retention stay. What no load uses up is left out.
    """
    found = []
    for what, used, then in _used_up(machine):

        def over(factor: float, used: Callable[[Demand], float] = used) -> bool:
            return used(demand(scaled(load, factor), costs, machine)) >= 1

        low, high = 1 / _FAR, 1.0
        while high < _FAR and not over(high):
            low, high = high, high * 10
        if not over(high):
            continue
        for _ in range(30):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if over(middle) else (middle, high)
        found.append(Limit(what, what.startswith("one "), high, load.lookups * high, load.events * high, then))
    return sorted(found, key=lambda limit: limit.factor)


def scaled(load: Load, factor: float) -> Load:
    """So many times as many lookups and events; all else as it was."""
    return msgspec.structs.replace(load, lookups=load.lookups * factor, events=load.events * factor)


RATES = (1_000, 10_000, 100_000, 1_000_000)


def loads(load: Load, costs: Costs, machine: Machine) -> list[Line]:
    """The table: lookups alone, records alone, records in batches, lookups with batches; all else as in this load."""
    kinds = [(1, 0, 1), (0, 1, 1), (0, 1, 1000), (1, 1, 1000)]
    change = msgspec.structs.replace
    asked = [
        change(load, lookups=rate * lookups, events=rate * events, event_batch=batch)
        for lookups, events, batch in kinds
        for rate in RATES
    ]
    return [Line(one, plan(one, costs, machine)) for one in asked]


def answered(load: Load, costs: Costs, machine: Machine, points: list[Point]) -> Capacity:
    """All that is said of a load."""
    return Capacity(
        load,
        machine,
        costs,
        plan(load, costs, machine),
        limits(load, costs, machine),
        loads(load, costs, machine),
        points,
    )
