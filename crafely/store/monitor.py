"""The database about itself, and its housekeeping: ``sql/monitor/``.

Ages and durations are in seconds, statements' times in milliseconds, sizes in bytes, shares and rates from 0 to 1.
"""

from datetime import datetime

from crafely.db.query import Executor, Row, sql


class Partitions(Row, frozen=True):
    """How many monthly partitions were made."""

    audit_log: int
    usage: int


class AppliedMigration(Row, frozen=True):
    """A migration that the database has had, and the checksum of what was applied."""

    migration_id: str
    migration_hash: str


class Position(Row, frozen=True):
    """How far the log of a server reaches, in bytes from its beginning."""

    bytes: int


class Statistics(Row, frozen=True):
    """Whether pg_stat_statements counts, and since when; ``dropped`` entries were forgotten for want of room.

    ``allowed`` is whether crafely_monitor has what pg_monitor has: else it sees little of anything.
    """

    allowed: bool
    loaded: bool
    installed: bool
    since: datetime | None
    dropped: int | None


class QueryStats(Row, frozen=True):
    """What one SQL file has cost. ``share`` is that of the time of all statements; blocks are of 8 kB, by call.

    A block is hit where it was in the server's memory, read where it was not, spilled where work_mem was too small.
    """

    statement: str
    calls: int
    total_ms: float
    mean_ms: float | None
    max_ms: float
    share: float
    rows_per_call: float | None
    hit_per_call: float | None
    read_per_call: float | None
    spilled_per_call: float | None


class IndexUse(Row, frozen=True):
    """An index. ``kept_for`` says why it must stay although nothing reads it: constraint, unique, foreign key, …

    ``unused_since`` is None for what is used or must stay. ``covered_by`` begins with the same columns. ``bloat_bytes``
    is an estimate (sql/monitor/indexes.sql), None for what is no B-tree. The last two are statements for the DBA.
    """

    name: str
    table: str
    method: str
    bytes: int
    entries: int | None
    scans: int
    kept_for: str | None
    unused_since: datetime | None
    covered_by: str | None
    bloat_bytes: int | None
    is_valid: bool
    drop_it: str
    rebuild_it: str


class MissingIndex(Row, frozen=True):
    """A foreign key without an index on its own columns, and the statement that makes one."""

    name: str
    table: str
    referenced: str
    columns: list[str]
    create_it: str


class TableSize(Row, frozen=True):
    """A table, with all its partitions, or (with a ``parent``) one partition.

    Sizes are None while the table is locked, ``bytes_per_day`` until it has been sampled for a day. Rows are estimates.
    """

    name: str
    parent: str | None
    partitions: int
    bytes: int | None
    index_bytes: int | None
    row_count: int | None
    dead_rows: int
    vacuumed_at: datetime | None
    transaction_age: int
    bytes_per_day: int | None


class Overview(Row, frozen=True):
    """The database and its server. ``counting_since`` is None where statistics were never reset.

    ``bytes_per_day`` is None until there are samples of a day, a rate until something was read, a limit where none is.
    """

    database: str
    server_version: str
    started_at: datetime
    counting_since: datetime | None
    bytes: int
    limit_bytes: int | None
    bytes_per_day: int | None
    sampled_since: datetime | None
    connections: int
    max_connections: int
    database_connections: int
    max_database_connections: int | None
    table_hit_rate: float | None
    index_hit_rate: float | None
    blocks_read: int
    deadlocks: int
    spilled_bytes: int
    transaction_age: int
    multixact_age: int
    freeze_max_age: int


class Connections(Row, frozen=True):
    """Connections of a kind, and for how long the longest of them has been in its state."""

    database: str | None
    role: str | None
    application: str
    state: str
    connections: int
    longest_seconds: float | None


class Transaction(Row, frozen=True):
    """An open transaction: since when, since when in its state, and the file of the statement it ran last."""

    pid: int
    role: str | None
    application: str
    state: str
    seconds: float
    state_seconds: float | None
    statement: str | None
    waits_for: str | None


class BlockedLock(Row, frozen=True):
    """Somebody who waits for a lock, and one who is in the way. A prepared transaction has the pid 0."""

    pid: int
    role: str | None
    application: str
    statement: str | None
    lock_mode: str | None
    object: str | None
    seconds: float | None
    blocking_pid: int
    blocking_role: str | None
    blocking_application: str | None
    blocking_state: str | None
    blocking_statement: str | None
    blocking_seconds: float | None


class Replica(Row, frozen=True):
    """A replica, or a slot that keeps the log for one that is absent. What does not apply is None."""

    name: str
    state: str
    synchronous: bool | None
    lag_bytes: int | None
    lag_seconds: float | None
    kept_bytes: int | None


@sql
async def ensure_partitions(db: Executor, *, months_ahead: int) -> Partitions:
    """Makes the months that usage and the audit trail will need, so many ahead."""


@sql
async def migrations(db: Executor) -> list[AppliedMigration]:
    """The migrations that this database has had, in order."""


@sql
async def statistics(db: Executor) -> Statistics:
    """Whether pg_stat_statements counts here."""


@sql
async def queries(db: Executor, *, sort: str, take: int) -> list[QueryStats]:
    """What the costliest SQL files have cost: by total time, or (sort) by mean or calls."""


@sql
async def overview(db: Executor) -> Overview:
    """The database and its server in one row."""


@sql
async def indexes(db: Executor, *, take: int) -> list[IndexUse]:
    """The indexes and what speaks against them, by table."""


@sql
async def missing_indexes(db: Executor, *, take: int) -> list[MissingIndex]:
    """Foreign keys that no index serves, by table."""


@sql
async def storage(db: Executor, *, take: int) -> list[TableSize]:
    """The largest tables and partitions (so many in all), each table before its partitions."""


@sql
async def connections(db: Executor, *, take: int) -> list[Connections]:
    """The server's connections by database, role, application and state, most first."""


@sql
async def transactions(db: Executor, *, take: int) -> list[Transaction]:
    """The open transactions of this database, oldest first."""


@sql
async def locks(db: Executor, *, take: int) -> list[BlockedLock]:
    """Who waits for whom, the longest wait first."""


@sql
async def replicas(db: Executor, *, take: int) -> list[Replica]:
    """Replicas and slots, by name."""


@sql
async def take_turn(db: Executor) -> bool:
    """Whether this transaction, and no other at the moment, may take a sample."""


@sql
async def sample(db: Executor, *, take: int) -> int:
    """Samples the sizes of so many relations, unless this hour has its sample. Gives how many rows."""


@sql
async def forget_samples(db: Executor, *, older_than: datetime) -> int:
    """Forgets samples that are older. Gives how many."""


@sql
async def position(db: Executor) -> Position:
    """How far the log reaches. Raises psycopg.errors.ObjectNotInPrerequisiteState on a standby."""
