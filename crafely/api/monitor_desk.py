"""What the DBA's desk shows, read from the database: for ``/v1/monitor/*``, the metrics and ``crafely monitor``.

Every function takes a session of crafely_monitor. None of them reads a row of a table of users, or waits for a lock.
"""

import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import msgspec

from crafely.config import Settings
from crafely.db.query import Executor
from crafely.store import monitor
from crafely.store.monitor import (
    BlockedLock,
    Connections,
    IndexUse,
    MissingIndex,
    Overview,
    QueryStats,
    Replica,
    Statistics,
    TableSize,
    Transaction,
)

# The most rows of each list: a database of thousands of tables must not make an answer of megabytes.
MAX_ROWS = 500


class Answer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of what the desk shows."""


class Queries(Answer, frozen=True, kw_only=True):
    """What the SQL files have cost, all workers and other programs that run them together.

    `problem` says why nothing is counted, and `data` is empty then. `since` is when counting began; `dropped` entries
    have been forgotten for want of room. `share` is that of the time of all statements of this database.
    """

    problem: str | None
    since: datetime | None
    dropped: int | None
    data: list[QueryStats]


class Indexes(Answer, frozen=True, kw_only=True):
    """The indexes and what speaks against them, and the foreign keys that lack one.

    `bloatBytes` is an estimate: the size that was last seen by vacuum or analyze, less what the entries should take.
    """

    data: list[IndexUse]
    missing: list[MissingIndex]


class Storage(Answer, frozen=True, kw_only=True):
    """The sizes of the database and its largest tables, and how they grow.

    `limitBytes` is what the database may grow to: the setting crafely.storage_limit of the database, or for an embedded
    server what its disk has room for; null where neither is known. `daysToFull` follows from the trend of the samples.
    """

    bytes: int
    limit_bytes: int | None
    bytes_per_day: int | None
    days_to_full: float | None
    sampled_since: datetime | None
    # Of the blocks asked for, those that were in memory, from 0 to 1.
    table_hit_rate: float | None
    index_hit_rate: float | None
    transaction_age: int
    data: list[TableSize]


class PoolUse(Answer, frozen=True, kw_only=True):
    """One pool of the process that answers: its role, its connections, and the requests that wait for one."""

    role: str
    size: int
    busy: int
    max_size: int
    waiting: int


class Pool(Answer, frozen=True, kw_only=True):
    """The pools of the process that answers, and the connections of the whole server against its limits."""

    pools: list[PoolUse]
    connections: int
    max_connections: int
    database_connections: int
    max_database_connections: int | None
    data: list[Connections]


class Activity(Answer, frozen=True, kw_only=True):
    """What goes on in this moment: open transactions, who waits for whose lock, and who follows the server."""

    transactions: list[Transaction]
    locks: list[BlockedLock]
    replicas: list[Replica]


class BackupUse(Answer, frozen=True, kw_only=True):
    """The newest complete backup of a schedule: its moment and its bytes, null where there is none yet.

    `problem` says why the folder cannot be looked at.
    """

    hours: float
    problem: str | None = None
    started_at: datetime | None
    bytes: int | None


class ReplicaUse(Answer, frozen=True, kw_only=True):
    """The standby that reads may be answered by, as the process that answers sees it: how far it is behind.

    `problem` says why it is left alone; null while it is used.
    """

    lag_seconds: float
    problem: str | None


class Desk(Answer, frozen=True, kw_only=True):
    """Everything at once."""

    overview: Overview
    queries: Queries
    indexes: Indexes
    storage: Storage
    pool: Pool
    activity: Activity
    # None: no backups are made here.
    backup: BackupUse | None = None
    # None: this process reads from no standby.
    replica: ReplicaUse | None = None


async def queries(db: Executor, *, sort: str = "total", take: int = 20) -> Queries:
    """The costliest SQL files, by total, mean or calls."""
    counted = await monitor.statistics(db)
    return Queries(
        problem=_uncounted(counted),
        since=counted.since,
        dropped=counted.dropped,
        data=await monitor.queries(db, sort=sort, take=take),
    )


def _uncounted(counted: Statistics) -> str | None:
    if not counted.allowed:
        return (
            "crafely_monitor lacks what pg_monitor may see: as a superuser, run «grant pg_monitor to crafely_monitor» "
            "and «alter role crafely_monitor inherit» (from PostgreSQL 16 on, grant it «with inherit true» instead)"
        )
    if counted.since is not None:
        return None
    if not counted.loaded:
        return "the server does not load pg_stat_statements: add it to shared_preload_libraries and restart"
    if not counted.installed:
        return "pg_stat_statements is not in this database: as a superuser, run «create extension pg_stat_statements»"
    return (
        "pg_stat_statements is too old, or closed to crafely_monitor: run «alter extension pg_stat_statements update», "
        "or grant it usage of the extension's schema"
    )


async def indexes(db: Executor) -> Indexes:
    """All indexes, by table."""
    return Indexes(
        data=await monitor.indexes(db, take=MAX_ROWS), missing=await monitor.missing_indexes(db, take=MAX_ROWS)
    )


async def storage(db: Executor, overview: Overview, room: int | None) -> Storage:
    """Sizes and growth. ``room`` is what the disk still has, in bytes, where that is known (room_of)."""
    limit = overview.limit_bytes
    if limit is None and room is not None:
        limit = overview.bytes + room
    grows = overview.bytes_per_day
    return Storage(
        bytes=overview.bytes,
        limit_bytes=limit,
        bytes_per_day=grows,
        days_to_full=max(limit - overview.bytes, 0) / grows if limit is not None and grows and grows > 0 else None,
        sampled_since=overview.sampled_since,
        table_hit_rate=overview.table_hit_rate,
        index_hit_rate=overview.index_hit_rate,
        transaction_age=overview.transaction_age,
        data=await monitor.storage(db, take=MAX_ROWS),
    )


def room_of(settings: Settings) -> int | None:
    """The bytes that are free on an embedded server's disk; None for another server, whose disk we cannot see."""
    if settings.database_url is not None:
        return None
    try:
        return shutil.disk_usage(Path(settings.data_dir)).free
    except OSError:
        return None


async def pool(db: Executor, overview: Overview, pools: Mapping[str, Mapping[str, int]]) -> Pool:
    """Connections. Takes what psycopg_pool's get_stats() gives for each role."""
    return Pool(
        pools=[_pool_use(role, stats) for role, stats in pools.items()],
        connections=overview.connections,
        max_connections=overview.max_connections,
        database_connections=overview.database_connections,
        max_database_connections=overview.max_database_connections,
        data=await monitor.connections(db, take=MAX_ROWS),
    )


def _pool_use(role: str, stats: Mapping[str, int]) -> PoolUse:
    size = stats.get("pool_size", 0)
    return PoolUse(
        role=role,
        size=size,
        busy=size - stats.get("pool_available", 0),
        max_size=stats.get("pool_max", 0),
        waiting=stats.get("requests_waiting", 0),
    )


async def activity(db: Executor) -> Activity:
    """Transactions, locks and replicas."""
    return Activity(
        transactions=await monitor.transactions(db, take=MAX_ROWS),
        locks=await monitor.locks(db, take=MAX_ROWS),
        replicas=await monitor.replicas(db, take=MAX_ROWS),
    )


async def look(
    db: Executor,
    *,
    room: int | None = None,
    pools: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    backup: BackupUse | None = None,
    replica: ReplicaUse | None = None,
    take: int = MAX_ROWS,
) -> Desk:
    """Everything, statement after statement: not one moment, but within some milliseconds of each other."""
    overview = await monitor.overview(db)
    return Desk(
        overview=overview,
        queries=await queries(db, take=take),
        indexes=await indexes(db),
        storage=await storage(db, overview, room),
        pool=await pool(db, overview, pools),
        activity=await activity(db),
        backup=backup,
        replica=replica,
    )


async def look_again(db: Executor, last: Desk, *, take: int = MAX_ROWS) -> Desk:
    """A desk with what changes from second to second as it is now, and the rest as it was: sizes and indexes."""
    overview = await monitor.overview(db)
    return Desk(
        overview=overview,
        queries=await queries(db, take=take),
        indexes=last.indexes,
        storage=last.storage,
        pool=await pool(db, overview, {}),
        activity=await activity(db),
        backup=last.backup,
        replica=last.replica,
    )
