"""What ``crafely bench capacity`` shows: the same tables for a terminal and for a page."""

from collections.abc import Sequence

import msgspec

from crafely.bench.capacity_terms import Answer, Capacity, Limit

# What a field of Costs is called, and in which unit it is shown.
_COSTS = {
    "hit_worker": ("a verification from memory: worker", "µs"),
    "read_worker": ("… whose row is read: worker", "µs"),
    "cold_worker": ("… whose row is read and whose secret is hashed: worker", "µs"),
    "read_server": ("a row of a key: PostgreSQL", "µs"),
    "single_worker": ("an event alone: worker", "µs"),
    "event_worker": ("an event of a batch: worker", "µs"),
    "batch_worker": ("a batch besides its events: worker", "µs"),
    "single_server": ("an event alone: PostgreSQL", "µs"),
    "event_server": ("an event of a batch: PostgreSQL", "µs"),
    "batch_server": ("a batch besides its events: PostgreSQL", "µs"),
    "touch_server": ("a use of a key noted: PostgreSQL", "µs"),
    "single_wal": ("an event alone: log", "bytes"),
    "event_wal": ("an event of a batch: log", "bytes"),
    "batch_wal": ("a batch besides its events: log", "bytes"),
    "touch_wal": ("a use of a key noted: log", "bytes"),
    "key_disk": ("a key: disk, indexes included", "bytes"),
    "usage_disk": ("an event: disk, indexes included", "bytes"),
    "ledger_disk": ("an event's eventId: disk, index included, for 40 days", "bytes"),
    "daily_disk": ("a row of the daily sums: disk, indexes included", "bytes"),
    "audit_disk": ("a row of the audit trail: disk, indexes included", "bytes"),
    "worker_memory": ("a worker that remembers nothing: memory", "MB"),
    "key_memory": ("a key that a worker remembers: memory", "bytes"),
    "backend_memory": ("a connection: memory of PostgreSQL", "MB"),
    "connections": ("connections of a worker", ""),
    "verify_network": ("a verification: network, there and back", "bytes"),
    "single_network": ("an event alone: network, there and back", "bytes"),
    "event_network": ("an event of a batch: network, there and back", "bytes"),
    "batch_network": ("a batch besides its events: network, there and back", "bytes"),
}
_UNITS = {"µs": 1e6, "MB": 1e-6, "bytes": 1.0, "": 1.0}


class Section(msgspec.Struct, frozen=True):
    """A table: its head, its rows, and which of its columns are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


def sections(found: Capacity) -> list[Section]:
    """All tables, in the order in which they are read."""
    load = found.load
    known = f"{load.hit_rate:.0%} from memory" if load.hit_rate is not None else f"use of keys: Zipf {load.zipf:g}"
    asked = (
        f"{load.keys:,} keys of {load.users:,} users, {load.lookups:,.0f} lookups/s ({known}), {load.events:,.0f} "
        f"events/s in batches of {load.event_batch:,}, kept for {load.retention_months} months"
    )
    return [
        Section(asked, ["it needs", ""], _needs(found.answer), frozenset({1})),
        _limits(found.limits),
        _loads(found),
        Section(
            "What the model says of loads that it was not made from",
            ["", "predicted", "measured", "", "off by"],
            [[p.name, _figure(p.predicted), _figure(p.measured), p.unit, f"{p.factor:.2f} ×"] for p in found.points],
            frozenset({1, 2, 4}),
        ),
        Section("Measured, for one", ["", "cost", ""], _costs(found), frozenset({1})),
        Section("Assumed, not measured", ["", ""], _assumed(found), frozenset({1})),
    ]


def _needs(answer: Answer) -> list[list[str]]:
    need = answer.demand
    return [
        ["tier", answer.tier],
        ["workers", f"{answer.workers:,}"],
        ["machines of workers", f"{answer.worker_machines:,}"],
        ["primaries", f"{answer.databases:,}"],
        ["standbys, for failover, lists and sums", f"{answer.replicas:,}"],
        ["shards of usage", _shards(answer)],
        ["machines in all", f"{answer.machines:,}"],
        ["a pooler", "yes" if answer.pooler else "no"],
        [
            "answered from memory · row read · hashed",
            " · ".join(f"{x:.1%}" for x in msgspec.structs.astuple(need.shares)),
        ],
        ["busy processors: workers", f"{need.worker_cores:,.2f}"],
        ["… PostgreSQL: rows of keys", f"{need.read_cores:,.2f}"],
        ["… PostgreSQL: uses of keys", f"{need.touch_cores:,.2f}"],
        ["… PostgreSQL: usage", f"{need.record_cores:,.2f}"],
        ["log", f"{size(need.touch_wal + need.record_wal)}/s"],
        ["disk: keys and their trail", size(need.key_disk)],
        ["disk: usage", size(need.usage_disk)],
        ["memory: workers", size(need.worker_memory)],
        ["memory: the primary, beside shared buffers", size(need.database_memory)],
        ["connections", f"{need.connections:,.0f}"],
        ["network between clients and workers", f"{need.network / 1e6:,.1f} Mbit/s"],
    ]


def _shards(answer: Answer) -> str:
    return f"{answer.shards:,} for {answer.shards_for}" if answer.shards else "0"


def _limits(found: Sequence[Limit]) -> Section:
    rows = [[one.what, f"{one.factor:,.3g} ×", f"{one.lookups:,.0f}", f"{one.events:,.0f}", one.then] for one in found]
    head = ["what ends first, wholly used", "of this load", "lookups/s", "events/s", "then"]
    return Section("What ends first", head, rows, frozenset({1, 2, 3}))


def _loads(found: Capacity) -> Section:
    rows = []
    for line in found.loads:
        answer, need = line.answer, line.answer.demand
        counts = (answer.workers, answer.databases, answer.replicas)
        rows.append(
            [
                f"{line.load.lookups:,.0f}",
                f"{line.load.events:,.0f}",
                f"{line.load.event_batch:,}" if line.load.events else "",
                answer.tier,
                *(f"{count:,}" for count in counts),
                _shards(answer),
                f"{answer.machines:,}",
                f"{need.worker_cores:,.1f} + {need.server_cores:,.1f}",
                f"{size(need.touch_wal + need.record_wal)}/s",
                size(need.key_disk + need.usage_disk),
            ]
        )
    head = ["lookups/s", "events/s", "batch", "tier", "workers", "primaries", "replicas", "shards", "machines"]
    head += ["busy processors", "log", "disk"]
    return Section("From a thousand to a million a second", head, rows, frozenset({0, 1, 2, *range(4, 12)}))


def _costs(found: Capacity) -> list[list[str]]:
    values = msgspec.structs.asdict(found.costs)
    return [[words, f"{values[name] * _UNITS[unit]:,.1f}", unit] for name, (words, unit) in _COSTS.items()]


def _assumed(found: Capacity) -> list[list[str]]:
    machine = found.machine
    return [
        ["processors of a machine, as quick as those here", f"{machine.cores}"],
        ["planned for, of processors, log and disk", f"{machine.utilization:.0%}"],
        ["log that a primary writes and its standbys replay", f"{size(machine.wal)}/s"],
        ["disk of a machine", size(machine.disk)],
        ["connections of a primary without a pooler", f"{machine.max_connections:,}"],
        ["keys that a worker remembers", f"{machine.key_cache_size:,}"],
        ["for which it believes a row", f"{machine.key_cache_seconds:g} s"],
        ["cost of usage that stays on the coordinator of Citus", f"{machine.coordinator:.0%}"],
        ["rows of daily sums for a user and day", f"{machine.daily_groups}"],
        ["years of daily sums, which outlive usage", f"{machine.years:g}"],
        ["changes of a key in a year", f"{machine.key_changes:g}"],
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} PB"
