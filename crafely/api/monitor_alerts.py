"""What of the desk needs somebody: plain lines, each with the object that it is about and the action to take."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from crafely.api.monitor_desk import Activity, Answer, Desk, ReplicaUse
from crafely.db import query
from crafely.store.monitor import IndexUse, Transaction


class Alert(Answer, frozen=True, kw_only=True):
    """Something that needs somebody. `code` is a word for programs, `object` is what it is about."""

    code: str
    severity: Literal["warning", "critical"]
    object: str
    message: str
    action: str

    def __str__(self) -> str:
        return f"{self.message}: {self.action}"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """From where on something is worth a line."""

    # The program's own statements may take 10 s, and its transactions hardly more.
    transaction_seconds: float = 60
    lock_seconds: float = 5
    connection_share: float = 0.8
    # A job may run but once a week, or a month: this is the least that says anything.
    unused_days: float = 7
    # Of an index, at least half and so many bytes: less is not worth the writes of a rebuild.
    bloat_share: float = 0.5
    bloat_bytes: int = 10 * 1024**2
    dead_share: float = 0.2
    dead_rows: int = 100_000
    days_to_full: float = 30
    lag_seconds: float = 60
    lag_bytes: int = 1024**3
    # Of blocks that are asked for, once so many have not been in memory (8 GB).
    hit_rate: float = 0.9
    # Of the hours between two backups.
    backup_factor: float = 2
    hit_blocks: int = 1024**2
    # The server freezes at one freeze_max_age by itself; writers stop at two thousand million.
    freeze_factor: float = 1.5
    freeze_critical: int = 1_200_000_000


LIMITS = Limits()


def alerts(desk: Desk, limits: Limits = LIMITS) -> list[Alert]:
    """All that is to be said of a desk, what is critical first."""
    found = [
        *_transactions(desk, limits),
        *_locks(desk.activity, limits),
        *_connections(desk, limits),
        *_replicas(desk.activity, limits),
        *_standby(desk.replica),
        *_space(desk, limits),
        *_ages(desk, limits),
        *_indexes(desk, limits),
        *_statistics(desk, limits),
        *_backups(desk, limits),
    ]
    return sorted(found, key=lambda alert: alert.severity != "critical")


def _transactions(desk: Desk, limits: Limits) -> Iterator[Alert]:
    for one in desk.activity.transactions:
        if one.seconds >= limits.transaction_seconds:
            yield Alert(
                code="long_transaction",
                severity="warning",
                object=f"pid {one.pid}",
                message=f"{_who(one)} has had a transaction open for {time_text(one.seconds)}, and is {one.state}",
                action="it keeps its locks, and vacuum from cleaning up; end what runs it, "
                f"or it: select pg_terminate_backend({one.pid})",
            )


def _who(one: Transaction) -> str:
    where = f" in {one.statement}" if one.statement else ""
    return f"pid {one.pid} ({one.application or 'unnamed'}, {one.role or 'nobody'}){where}"


def _locks(activity: Activity, limits: Limits) -> Iterator[Alert]:
    # Who waits for somebody who waits: only the first in the row can be helped.
    waiting = {one.pid for one in activity.locks}
    for one in activity.locks:
        if (one.seconds or 0) < limits.lock_seconds or one.blocking_pid in waiting:
            continue
        blocker = one.blocking_application or ("a prepared transaction" if not one.blocking_pid else "unnamed")
        doing = f", {one.blocking_state}" if one.blocking_state else ""
        yield Alert(
            code="blocked",
            severity="critical",
            object=one.object or "a lock",
            message=f"pid {one.pid} ({one.statement or one.application or 'unnamed'}) has waited "
            f"{time_text(one.seconds or 0)} for {one.lock_mode or 'a lock'} on {one.object or 'something'}, "
            f"which pid {one.blocking_pid} ({blocker}{doing}) holds or wants before it",
            action=f"end what the other does, or it: select pg_terminate_backend({one.blocking_pid})"
            if one.blocking_pid
            else "commit or roll back what stands in pg_prepared_xacts",
        )


def _connections(desk: Desk, limits: Limits) -> Iterator[Alert]:
    one = desk.overview
    for object_, count, limit, what in (
        ("max_connections", one.connections, one.max_connections, "the server's connections"),
        (one.database, one.database_connections, one.max_database_connections, f"connections to {one.database}"),
    ):
        if limit is None or count < limit * limits.connection_share:
            continue
        most = max(desk.pool.data, key=lambda kind: kind.connections, default=None)
        by = f"; most are {most.application or 'unnamed'} ({most.role}), {most.state}" if most else ""
        yield Alert(
            code="connections",
            severity="critical" if count >= limit else "warning",
            object=object_,
            message=f"{count} of {limit} {what} are taken{by}",
            action="lower CRAFELY_POOL_SIZE or the number of workers, put a pooler in front, or raise the limit",
        )


def _replicas(activity: Activity, limits: Limits) -> Iterator[Alert]:
    for one in activity.replicas:
        if one.state == "absent":
            if (one.kept_bytes or 0) >= limits.lag_bytes:
                yield Alert(
                    code="absent_replica",
                    severity="critical",
                    object=one.name,
                    message=f"nobody reads the slot {one.name}, and {size_text(one.kept_bytes)} of log are kept for it",
                    action=f"bring its replica back, or give it up: select pg_drop_replication_slot('{one.name}')",
                )
        elif (one.lag_seconds or 0) >= limits.lag_seconds or (one.lag_bytes or 0) >= limits.lag_bytes:
            yield Alert(
                code="replication_lag",
                severity="warning",
                object=one.name,
                message=f"{one.name} is {size_text(one.lag_bytes)} and {time_text(one.lag_seconds or 0)} behind",
                action="look at its disk and network, and for long queries there that hold the log up",
            )


def _standby(one: ReplicaUse | None) -> Iterator[Alert]:
    if one is not None and one.problem is not None:
        yield Alert(
            code="replica_left_alone",
            severity="warning",
            object="CRAFELY_REPLICA_URL",
            message=f"nothing is read from the standby: {one.problem}",
            action="the primary answers in its place, and it is used again by itself; look at what keeps it back",
        )


def _space(desk: Desk, limits: Limits) -> Iterator[Alert]:
    one = desk.storage
    if one.days_to_full is not None and one.days_to_full <= limits.days_to_full:
        growing = [table for table in one.data if table.parent is None and table.bytes_per_day]
        most = max(growing, key=lambda table: table.bytes_per_day or 0, default=None)
        by = f", most of it {most.name}" if most else ""
        yield Alert(
            code="disk_full",
            severity="critical" if one.days_to_full <= limits.days_to_full / 10 else "warning",
            object=desk.overview.database,
            message=f"{desk.overview.database} has {size_text(one.bytes)} of {size_text(one.limit_bytes)} and grows by "
            f"{size_text(one.bytes_per_day)} a day{by}; it is full in {one.days_to_full:.0f} days",
            action="make room, or drop old partitions",
        )
    for table in one.data:
        rows, dead = table.row_count or 0, table.dead_rows
        # Of a partitioned table the partitions are named.
        if not table.partitions and dead >= limits.dead_rows and dead > limits.dead_share * (rows + dead):
            yield Alert(
                code="dead_rows",
                severity="warning",
                object=table.name,
                message=f"{dead} of {rows + dead} rows of {table.name} are dead",
                action=f"end long transactions, then: vacuum (analyze) {table.name}",
            )


def _ages(desk: Desk, limits: Limits) -> Iterator[Alert]:
    one = desk.overview
    for age, what in ((one.transaction_age, "transaction"), (one.multixact_age, "multixact")):
        if age < limits.freeze_factor * one.freeze_max_age:
            continue
        oldest = max(desk.storage.data, key=lambda table: table.transaction_age or 0, default=None)
        table = oldest.name if oldest is not None else "the oldest table"
        yield Alert(
            code="wraparound",
            severity="critical" if age >= limits.freeze_critical else "warning",
            object=one.database,
            message=f"the oldest {what} of {one.database} is {age} back, and autovacuum should have frozen it at "
            f"{one.freeze_max_age}",
            action=f"end long transactions, drop unused slots, then: vacuum (freeze) {table}",
        )


def _indexes(desk: Desk, limits: Limits) -> Iterator[Alert]:
    for key in desk.indexes.missing:
        yield Alert(
            code="missing_index",
            severity="warning",
            object=key.name,
            message=f"no index of {key.table} finds the rows of {key.name} ({', '.join(key.columns)}): a delete in "
            f"{key.referenced} reads the whole table",
            action=key.create_it,
        )
    long_ago = datetime.now(UTC) - timedelta(days=limits.unused_days)
    meant = _meant()
    for index in desk.indexes.data:
        if not index.is_valid:
            yield _index("invalid_index", index, "was left half-made, and only costs", index.drop_it)
        elif index.covered_by is not None:
            files = f", though {', '.join(meant[index.name])} names it" if index.name in meant else ""
            yield _index(
                "duplicate_index", index, f"does nothing that {index.covered_by} does not{files}", index.drop_it
            )
        elif index.unused_since is not None and index.unused_since <= long_ago and index.name not in meant:
            since = f"has not been used since {index.unused_since:%Y-%m-%d}"
            yield _index("unused_index", index, since, f"make sure that no replica uses it, then: {index.drop_it}")
        elif (waste := index.bloat_bytes or 0) >= max(limits.bloat_bytes, limits.bloat_share * index.bytes):
            yield _index("bloated_index", index, f"could do without some {size_text(waste)} of it", index.rebuild_it)


def _meant() -> dict[str, list[str]]:
    """The SQL files that mean to use an index, by its name: one of theirs may be idle because nobody came by."""
    meant: dict[str, list[str]] = {}
    for name, statement in sorted(query.statements.items()):
        for index in statement.header.uses:
            meant.setdefault(index, []).append(f"sql/{name}.sql")
    return meant


def _index(code: str, index: IndexUse, what: str, action: str) -> Alert:
    return Alert(
        code=code,
        severity="warning",
        object=index.name,
        message=f"{index.name} on {index.table} ({size_text(index.bytes)}) {what}",
        action=action,
    )


def _statistics(desk: Desk, limits: Limits) -> Iterator[Alert]:
    if desk.queries.problem is not None:
        reason, _, action = desk.queries.problem.partition(": ")
        yield Alert(
            code="no_statistics",
            severity="warning",
            object="pg_stat_statements",
            message=f"what statements cost is not counted, for {reason}",
            action=action,
        )
    one = desk.overview
    for rate, what in ((one.table_hit_rate, "tables"), (one.index_hit_rate, "indexes")):
        if rate is not None and rate < limits.hit_rate and one.blocks_read >= limits.hit_blocks:
            yield Alert(
                code="cache_hit_rate",
                severity="warning",
                object=what,
                message=f"of the blocks of {what} that are asked for, {rate:.0%} are in memory",
                action="raise shared_buffers, or look for the statements with the most blocks read",
            )


def _backups(desk: Desk, limits: Limits) -> Iterator[Alert]:
    one = desk.backup
    if one is None:
        return
    late = timedelta(hours=one.hours * limits.backup_factor)
    if one.started_at is None:
        message = f"backups cannot be looked at ({one.problem})" if one.problem else "there is no backup yet"
    elif (age := datetime.now(UTC) - one.started_at) >= late:
        message = f"the newest backup is {time_text(age.total_seconds())} old, and one is due every {one.hours:g} h"
    else:
        return
    yield Alert(
        code="backup_late",
        severity="critical" if one.started_at is not None or one.problem else "warning",
        object="CRAFELY_BACKUP_DIR",
        message=message,
        action="look in the log for why none was made, or make one: crafely backup create",
    )


def size_text(count: int | float | None) -> str:
    """Bytes, as people write them."""
    size, units = float(count or 0), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"


def time_text(seconds: float) -> str:
    """Seconds, as people write them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
