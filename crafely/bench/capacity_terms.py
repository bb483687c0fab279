"""The words of capacity planning: a load, a machine, what things cost, what is needed, and what ends first.

Units: seconds of one processor, bytes, and things a second.
"""

import msgspec

# More than any prediction is off that says anything.
_OFF = 1e6


class Costs(msgspec.Struct, frozen=True, rename="camel"):
    """What was measured. «_worker» and «_server» are seconds of one processor, there, for one thing."""

    # A verification answered from memory; whose row is read anew; whose row is read and whose secret is hashed.
    hit_worker: float
    read_worker: float
    cold_worker: float
    # A row of a key, read together with those of other callers.
    read_server: float
    # A record alone, stored together with those of other callers; one of a batch; and what each batch has to itself.
    single_worker: float
    event_worker: float
    batch_worker: float
    single_server: float
    event_server: float
    batch_server: float
    # The use of a key, noted.
    touch_server: float
    # Bytes of the log.
    single_wal: float
    event_wal: float
    batch_wal: float
    touch_wal: float
    # Bytes of a row on disk, with its part of the indexes: an event without and with its entry in the ledger of events.
    key_disk: float
    usage_disk: float
    ledger_disk: float
    daily_disk: float
    audit_disk: float
    # Bytes of memory: a worker that remembers nothing, a key that it remembers, a connection's backend by itself.
    worker_memory: float
    key_memory: float
    backend_memory: float
    # Connections of a worker.
    connections: float
    # Bytes on the network, there and back: a verification, a record alone, one of a batch, the rest of a batch.
    verify_network: float
    single_network: float
    event_network: float
    batch_network: float


class Load(msgspec.Struct, frozen=True, rename="camel"):
    """What is asked."""

    keys: int = 1_000_000
    # Verifications and records of usage in a second.
    lookups: float = 10_000
    events: float = 1_000
    # Records of a request; 1: each by itself.
    event_batch: int = 1
    retention_months: int = 3
    users: int = 100_000
    # How unequal the use of keys is: the first is used 2^zipf times as often as the second; 0: all alike.
    zipf: float = 1.07
    # The share of verifications answered from memory, where it is known; the others need the row and a hash.
    hit_rate: float | None = None


class Machine(msgspec.Struct, frozen=True, rename="camel"):
    """What is assumed and not measured."""

    cores: int = 16
    # Of a machine's processors, log and disk: what is planned for.
    utilization: float = 0.6
    # Bytes a second of log that a primary writes and its standbys replay.
    wal: float = 200e6
    # Bytes of disk of a machine.
    disk: float = 16e12
    # Connections of a primary, beyond which a pooler stands before it.
    max_connections: int = 500
    # Keys that a worker remembers, and for how many seconds it believes a row.
    key_cache_size: int = 100_000
    key_cache_seconds: float = 60
    # The part of storing usage that stays on the coordinator when Citus distributes the rest.
    coordinator: float = 0.25
    # Rows of the daily sums for a user and day: providers, models, types and currencies that he uses.
    daily_groups: int = 4
    # Years that are planned for: the daily sums of months that are dropped stay.
    years: float = 5
    # Changes of a key in a year, besides its making: rows of the audit trail.
    key_changes: float = 1


class Shares(msgspec.Struct, frozen=True, rename="camel"):
    """Of the verifications: from memory, row read, row read and hashed. They sum to 1."""

    hit: float
    read: float
    cold: float


class Demand(msgspec.Struct, frozen=True, rename="camel"):
    """What a load keeps busy: processors unless said otherwise."""

    shares: Shares
    workers: int
    worker_cores: float
    read_cores: float
    touch_cores: float
    record_cores: float
    # Bytes a second of log: of uses of keys, of usage.
    touch_wal: float
    record_wal: float
    # Bytes on disk, one copy: keys and their trail; usage, its sums and its ledger.
    key_disk: float
    usage_disk: float
    # Bytes of memory, of all workers; of the primary beside shared buffers: its backends, and all keys, read at random.
    worker_memory: float
    database_memory: float
    connections: float
    # Bits a second between clients and workers.
    network: float

    @property
    def server_cores(self) -> float:
        """Processors that one PostgreSQL would keep busy with all of it."""
        return self.read_cores + self.touch_cores + self.record_cores


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """What a load needs."""

    # «one machine», «primary» or «Citus».
    tier: str
    workers: int
    worker_machines: int
    # Primaries; more than one: users are divided among databases that know nothing of each other.
    databases: int
    # A standby of each primary and shard; one machine has none.
    replicas: int
    shards: int
    # What they are for: «processors», «log» or «disk», the one that takes most of them; empty where there are none.
    shards_for: str
    machines: int
    pooler: bool
    demand: Demand


class Limit(msgspec.Struct, frozen=True, rename="camel"):
    """What is used up, at how much of the load (1: at this load), and what to do then."""

    what: str
    # Whether it is a matter of workers; else of PostgreSQL.
    of_workers: bool
    factor: float
    lookups: float
    events: float
    then: str


class Line(msgspec.Struct, frozen=True):
    """A row of the table of loads."""

    load: Load
    answer: Answer


class Point(msgspec.Struct, frozen=True, rename="camel"):
    """What the model says of something that was measured and that it was not made from."""

    name: str
    unit: str
    predicted: float
    measured: float

    @property
    def counted(self) -> bool:
        """Whether it was counted, as bytes are, and not timed."""
        return self.unit.startswith("bytes")

    @property
    def factor(self) -> float:
        """By how much it is off, in either direction: 1 is right; a million at most, since JSON has no infinity."""
        low, high = sorted((self.predicted, self.measured))
        return high / max(low, high / _OFF) if high > 0 else 1.0


class Capacity(msgspec.Struct, frozen=True):
    """What the page shows, and what answers for other loads without measuring anew."""

    load: Load
    machine: Machine
    costs: Costs
    answer: Answer
    limits: list[Limit]
    loads: list[Line]
    points: list[Point]
