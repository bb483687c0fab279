"""Backups: every row of one moment in a folder, and (restore.py) a database made of it again.

The schema is migrations, which every release carries: a backup holds the rows, and says which migrations they fit. It
is a folder with a file for each table, in COPY's text format, compressed and sealed with the keyring, and
``manifest.json``, which says what they are and is sealed itself. Why not pg_dump: row-level security is forced here for
everybody, so it would have to run as a superuser, or as a role that may insert; it needs the client programs of the
server's own version on the machine that serves; and what it writes is neither sealed nor checked.

A backup is read in one repeatable-read transaction as ``crafely_backup``, in a session that could not write.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql as names
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from crafely import __version__
from crafely.db import migrate
from crafely.db.backup.folder import Backup, BackupError, Making, Manifest, TableCopy, make, plain_errors
from crafely.db.backup.stream import Tally, pack
from crafely.db.query import Statement, WrongRoleError
from crafely.db.session import CONNECT_SECONDS, DatabaseUnavailableError, unavailable
from crafely.db.tls import secured
from crafely.keyring import Keyring

ROLE = "crafely_backup"
# A month's partition; its name says what it holds.
MONTH = re.compile(r"(?P<table>[a-z_]+)_y(?P<year>\d{4})m(?P<month>0[1-9]|1[0-2])")
# How long it waits for somebody who changes the schema.
_LOCK_SECONDS = 30
# So many rows go by between two words of the progress.
_STEP = 10_000
# What the text of a row depends on, and no limit for a statement that takes as long as its table is large. A table is
# read from its beginning, so that it goes back in the same order.
_SETTINGS = {
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "timezone": "UTC",
    "synchronize_seqscans": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": f"{_LOCK_SECONDS}s",
}

# A server that is gone without a word is given up after a minute. (Seconds; the last, ms.)
_PATIENCE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# Told what is being done, how much of it is done, and how much of it there is: rows or bytes, perhaps estimated.
Progress = Callable[[str, int, int], None]


class Table(msgspec.Struct, frozen=True):
    """A table as it is now (tables.sql)."""

    name: str
    columns: list[str]
    refers_to: list[str]
    partitions: list[str]
    row_estimate: int
    is_whole: bool


def create(
    url: str, place: Path, *, ring: Keyring, head: Statement | None = None, on_progress: Progress = lambda *_: None
) -> Backup:
    """Makes a backup of the database at ``url`` in a new folder in ``place``, whose turn the caller holds.

    ``head`` is a statement of ``crafely_backup`` that gives the head of the audit trail's chain; it is asked where the
    database has all migrations of this release. Whatever fails, nothing of it is left. Raises BackupError,
    DatabaseUnavailableError, WrongRoleError.
    """
    started = datetime.now(UTC)
    with plain_errors(place), connect(url, role=ROLE) as connection, make(place, started) as making:
        found = tables(connection)
        _require_whole(found)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            # A lock takes no snapshot: what is read afterwards is of one moment, in which nobody changes these tables.
            among = names.SQL(", ").join(names.Identifier(table.name) for table in found)
            connection.execute(names.SQL("lock table {} in access share mode").format(among))
            if [msgspec.structs.replace(table, row_estimate=0) for table in tables(connection)] != [
                msgspec.structs.replace(table, row_estimate=0) for table in found
            ]:
                raise BackupError("tables were changed in this moment: try again")
            migrations = dict(connection.execute(question("history")).fetchall())
            is_current = migrations == migrate.expected()
            row = connection.execute(head.text).fetchone() if head and is_current else None
            copies = _copies(connection, found, making, ring, on_progress)
            manifest = Manifest(
                id=making.id,
                release=__version__,
                server=connection.info.parameter_status("server_version") or "",
                database=connection.info.dbname,
                started_at=started,
                finished_at=datetime.now(UTC),
                key=ring.writes,
                migrations=migrations,
                audit_head=row[0] if row else None,
                tables=copies,
            )
            making.seal(manifest, ring)
    return Backup(place / making.name, "complete", manifest)


def _require_whole(found: Iterable[Table]) -> None:
    """Raises BackupError where rows would be missing in the backup, and nobody would know."""
    if hidden := [table.name for table in found if not table.is_whole]:
        raise BackupError(
            f"{ROLE} does not see every row of the table {hidden[0]}: grant it select and, with row-level security, "
            f"give it a policy using (true); or move a table that is none of crafely's to another schema"
        )


def _copies(
    connection: psycopg.Connection[Any], found: list[Table], making: Making, ring: Keyring, on_progress: Progress
) -> list[TableCopy]:
    total = sum(table.row_estimate for table in found)
    copies: list[TableCopy] = []
    for table in found:
        before = sum(copy.rows for copy in copies)
        tally = Tally()
        lines = watched(
            tally.count(rows(connection, table.name, table.columns)), tally, table.name, on_progress, before, total
        )
        file = f"{table.name}.copy.gz" + (".sealed" if ring.writes else "")
        size, digest = making.write(file, pack(lines, ring, making.label(file)))
        copies.append(
            TableCopy(
                name=table.name,
                columns=table.columns,
                partitions=[part for part in table.partitions if MONTH.fullmatch(part)],
                rows=tally.rows,
                bytes=tally.bytes,
                checksum=tally.checksum,
                file=file,
                file_bytes=size,
                file_sha256=digest,
            )
        )
    return copies


def rows(connection: psycopg.Connection[Any], table: str, columns: Iterable[str]) -> Iterator[bytes]:
    """Every row of a table, as COPY writes them."""
    # Of a query: a partitioned table itself cannot be copied on every version.
    query = names.SQL("copy (select {} from {}) to stdout").format(listed(columns), names.Identifier(table))
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for block in copy:
            yield bytes(block)


def watched(
    lines: Iterable[bytes], tally: Tally, what: str, on_progress: Progress, before: int, total: int
) -> Iterator[bytes]:
    """The lines, while the progress is told now and then how many rows the tally has counted, besides those before."""
    on_progress(what, before, max(total, before))
    told = 0
    for line in lines:
        yield line
        if tally.rows >= told + _STEP:
            told = tally.rows
            on_progress(what, before + told, max(total, before + told))


def tables(connection: psycopg.Connection[Any]) -> list[Table]:
    """The tables that a backup holds, by name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return [Table(**row) for row in cursor.execute(question("tables"))]


def listed(columns: Iterable[str]) -> names.Composed:
    """Names of columns, quoted, with commas."""
    return names.SQL(", ").join(names.Identifier(column) for column in columns)


@contextmanager
def connect(url: str, *, role: str | None = None) -> Iterator[psycopg.Connection[Any]]:
    """A connection to read or load whole tables, as a role (then in a session that cannot write) or as the login.

    Raises DatabaseUnavailableError, WrongRoleError.
    """
    settings = dict(_SETTINGS)
    if role is not None:
        settings |= {"role": role, "default_transaction_read_only": "on"}
    try:
        given = conninfo_to_dict(url)
        patience: dict[str, Any] = {name: given.get(name) or value for name, value in _PATIENCE.items()}
        connection = psycopg.connect(
            secured(url),
            autocommit=True,
            prepare_threshold=None,
            application_name=given.get("application_name") or "crafely backup",
            connect_timeout=given.get("connect_timeout") or CONNECT_SECONDS,
            client_encoding="UTF8",
            **patience,
            options=" ".join([str(given.get("options") or ""), *(f"-c {k}={v}" for k, v in settings.items())]),
        )
    except psycopg.Error as error:
        raise DatabaseUnavailableError(unavailable(url, error)) from None
    with connection:
        current = connection.execute("select current_user").fetchone()
        if role is not None and current != (role,):
            raise WrongRoleError(f"this connection runs as {current[0] if current else 'nobody'}, not as {role}")
        yield connection


@cache
def question(name: str) -> bytes:
    """The text of a file beside this one."""
    return (Path(__file__).parent / f"{name}.sql").read_bytes()
