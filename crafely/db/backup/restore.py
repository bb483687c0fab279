"""A database made of a backup: migrated, filled and compared in one transaction, or left as empty as it was.

Works as the login that migrates, which owns the tables and needs no more: triggers rest (nothing is audited, summed or
stamped a second time; foreign keys are checked), and row-level security does not hold for the owner meanwhile. The
catalogue is compared before and after: everything is put back as it was.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import date
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql as names

from crafely.db import migrate, snapshot
from crafely.db.backup import MONTH, Progress, connect, listed, question, rows, tables, watched
from crafely.db.backup.folder import BackupError, Manifest, TableCopy, blocks, check, label, plain_errors, read
from crafely.db.backup.stream import Tally, unpack
from crafely.db.query import Statement
from crafely.keyring import Keyring

_ENABLE = {"O": "enable", "A": "enable always", "R": "enable replica"}


class Restored(msgspec.Struct, frozen=True):
    """What was restored, and the seconds that it took, from the first byte read to the statistics."""

    manifest: Manifest
    seconds: float


def restore(
    url: str,
    path: Path,
    *,
    ring: Keyring,
    finish: Sequence[Statement] = (),
    on_progress: Progress = lambda *_: None,
) -> Restored:
    """Fills the empty database at ``url`` with the backup in the folder ``path``.

    ``finish`` are statements without parameters that run last in the same transaction, as the owner, where the backup
    has all migrations of this release. Raises BackupError, MigrationError, DatabaseUnavailableError: then the database
    is as empty as before.
    """
    begin = time.monotonic()
    manifest = read(path, ring)
    last = _last_migration(manifest)
    _require_months(manifest)
    # Every byte is looked at before the database is touched.
    done = 0

    def checked(count: int) -> None:
        nonlocal done
        done += count
        on_progress("checking files", done, manifest.bytes)

    check(path, manifest, checked)
    with connect(url) as connection:
        _require_empty(connection)
    migrate.up(url, to=last)
    try:
        with plain_errors(path), connect(url) as connection:
            with connection.transaction():
                _load(connection, path, manifest, ring, finish, on_progress)
            # So that plans are good at once.
            on_progress("gathering statistics", manifest.rows, manifest.rows)
            connection.execute(names.SQL("analyze {}").format(listed(table.name for table in manifest.tables)))
    except BaseException:
        _empty_again(url)
        raise
    return Restored(manifest, time.monotonic() - begin)


def _last_migration(manifest: Manifest) -> str:
    """The last migration of a backup. Raises BackupError unless they are the first ones of this release."""
    known = migrate.expected()
    for name, checksum in manifest.migrations.items():
        if known.get(name) != checksum:
            what = "in another text than" if name in known else "which is unknown to"
            raise BackupError(
                f"it was made with the migration {name}, {what} this release: restore with {manifest.release}"
            )
    if not manifest.migrations or list(manifest.migrations) != list(known)[: len(manifest.migrations)]:
        raise BackupError("its migrations are not the first ones of this release")
    return list(manifest.migrations)[-1]


def _require_months(manifest: Manifest) -> None:
    for table in manifest.tables:
        for name in table.partitions:
            month = MONTH.fullmatch(name)
            if month is None or month["table"] != table.name:
                raise BackupError(f"{name} is no month of the table {table.name}")


def _require_empty(connection: psycopg.Connection[Any]) -> None:
    with plain_errors(Path()):
        if row := connection.execute(question("relations")).fetchone():
            raise BackupError(
                f"the database {connection.info.dbname} is not empty (it has {row[0]}): restore into a new one"
            )


def _load(
    connection: psycopg.Connection[Any],
    path: Path,
    manifest: Manifest,
    ring: Keyring,
    finish: Sequence[Statement],
    on_progress: Progress,
) -> None:
    order = _order(connection, manifest)
    for table in order:
        _make_months(connection, table)
    before = snapshot.look(connection)
    triggers, forced = rest(connection)
    # What a migration has put into a table is in the backup, too, or was taken out since.
    connection.execute(names.SQL("truncate {}").format(listed(table.name for table in order)))
    done = 0
    for table in order:
        _copy_in(connection, path, manifest, table, ring, on_progress, done)
        done += table.rows
    for relation, column, sequence in connection.execute(question("sequences")).fetchall():
        connection.execute(
            names.SQL("select setval({}::regclass, max({})) from {} having max({}) is not null").format(
                names.Literal(sequence), names.Identifier(column), names.Identifier(relation), names.Identifier(column)
            )
        )
    for table in order:
        _compare(connection, table, on_progress, manifest.rows)
    wake(connection, triggers, forced)
    if manifest.migrations == migrate.expected():
        for statement in finish:
            connection.execute(statement.text)
    if snapshot.compare(before, snapshot.look(connection)):
        raise BackupError("triggers or row-level security could not be put back as they were")


def _order(connection: psycopg.Connection[Any], manifest: Manifest) -> list[TableCopy]:
    """The tables of a backup, each after those that it refers to. Raises BackupError where the database has others."""
    copies = {table.name: table for table in manifest.tables}
    found = {table.name: table for table in tables(connection)}
    for name in sorted(copies.keys() | found.keys()):
        theirs, ours = copies.get(name), found.get(name)
        if theirs is None or ours is None or theirs.columns != ours.columns:
            raise BackupError(f"the table {name} is not the same in the backup and in its migrations")
    graph = {name: set(found[name].refers_to) for name in copies}
    return [copies[name] for name in TopologicalSorter(graph).static_order()]


def _make_months(connection: psycopg.Connection[Any], table: TableCopy) -> None:
    """Makes the months that the backup has and the migrations did not make, as ensure_month_partitions does."""
    for name in table.partitions:
        make_month(connection, name)


def make_month(connection: psycopg.Connection[Any], name: str) -> None:
    """Makes the month that a partition's name says, such as usage_y2026m11, unless it is there. Gives nothing."""
    month = MONTH.fullmatch(name)
    if month is None or connection.execute("select to_regclass(%s)", [f"public.{name}"]).fetchone() != (None,):
        return
    first = date(int(month["year"]), int(month["month"]), 1)
    after = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    part, parent = names.Identifier(name), names.Identifier(month["table"])
    for text in (
        "create table {part} (like {parent} including all excluding identity)",
        "alter table {parent} attach partition {part} for values from ({first}) to ({after})",
        "alter table {part} enable row level security",
        "alter table {part} force row level security",
    ):
        connection.execute(
            names.SQL(text).format(
                part=part,
                parent=parent,
                first=names.Literal(f"{first} 00:00:00+00"),
                after=names.Literal(f"{after} 00:00:00+00"),
            )
        )


def rest(connection: psycopg.Connection[Any]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Lays triggers and the owner's row-level security to rest, in this transaction. Gives what to wake."""
    triggers = connection.execute(question("triggers")).fetchall()
    for relation, trigger, _ in triggers:
        _alter(connection, relation, "disable trigger {}", trigger)
    forced = [name for (name,) in connection.execute(question("forced")).fetchall()]
    for name in forced:
        _alter(connection, name, "no force row level security")
    return triggers, forced


def wake(connection: psycopg.Connection[Any], triggers: Iterable[tuple[str, str, str]], forced: Iterable[str]) -> None:
    """Wakes what ``rest`` gave."""
    for relation, trigger, enabled in triggers:
        _alter(connection, relation, _ENABLE[enabled] + " trigger {}", trigger)
    for name in forced:
        _alter(connection, name, "force row level security")


def _alter(connection: psycopg.Connection[Any], relation: str, what: str, *also: str) -> None:
    # Each partition for itself: what one of them has is not always what its parent has.
    text = f"alter table only {{}} {what}"
    connection.execute(names.SQL(text).format(*(names.Identifier(name) for name in (relation, *also))))


def _copy_in(
    connection: psycopg.Connection[Any],
    path: Path,
    manifest: Manifest,
    table: TableCopy,
    ring: Keyring,
    on_progress: Progress,
    before: int,
) -> None:
    file = unpack(blocks(path / table.file), ring, label(manifest.id, table.file))
    tally = Tally()
    query = names.SQL("copy {} ({}) from stdin").format(names.Identifier(table.name), listed(table.columns))
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for block in watched(tally.count(file), tally, f"loading {table.name}", on_progress, before, manifest.rows):
            copy.write(block)
    _require(table, tally, "holds")


def _compare(connection: psycopg.Connection[Any], table: TableCopy, on_progress: Progress, total: int) -> None:
    """Reads a table back. Raises BackupError unless its rows are those that were backed up."""
    tally = Tally()
    on_progress(f"comparing {table.name}", total, total)
    for _ in tally.count(rows(connection, table.name, table.columns)):
        pass
    _require(table, tally, "was given")


def _require(table: TableCopy, tally: Tally, verb: str) -> None:
    if tally.rows != table.rows:
        raise BackupError(f"the table {table.name} {verb} {tally.rows} rows, and {table.rows} were backed up")
    if (tally.bytes, tally.checksum) != (table.bytes, table.checksum):
        raise BackupError(f"the table {table.name} {verb} other rows than were backed up")


def _empty_again(url: str) -> None:
    """Takes back what the migrations made. The roles stay: they were perhaps there before, with members."""
    applied = [one for one in migrate.status(url) if one.state == "applied"]
    if len(applied) > 1:
        migrate.down(url, steps=len(applied) - 1)
    with connect(url) as connection:
        for (name,) in connection.execute(question("left")).fetchall():
            connection.execute(names.SQL("drop table {}").format(names.Identifier(name)))
