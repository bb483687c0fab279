"""The records of usage of one month in a file, before retention drops them: CSV with a header, as COPY writes it.

It is for other programs, and not sealed, other than a backup: who keeps it sees to who may read it.
"""

import hashlib
import os
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import BinaryIO

import msgspec
import psycopg
from psycopg import sql as names

from crafely.db.backup import ROLE, connect, listed, question, tables
from crafely.db.backup.folder import BackupError, plain_errors, private, sync

# gzip's own form; more effort makes it little smaller, and several times slower.
_LEVEL, _GZIP = 4, 31
_STEP = 10_000

# Told how many rows are written, and how many there are.
Progress = Callable[[int, int], None]


class Exported(msgspec.Struct, frozen=True):
    """What was written. ``bytes`` and ``sha256`` are of the file as it lies there; ``file`` is None for a stream."""

    month: str
    rows: int
    bytes: int
    sha256: str
    file: str | None = None


def export(url: str, month: date, target: BinaryIO, *, gzip: bool, on_progress: Progress = lambda *_: None) -> Exported:
    """Writes the records of a month (UTC), given by its first day, to a stream; all of one moment, in no order.

    Raises BackupError where the month was dropped or the database refuses; DatabaseUnavailableError, WrongRoleError;
    OSError of the stream.
    """
    end = (month + timedelta(days=32)).replace(day=1)
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP) if gzip else None
    digest, size, written = hashlib.sha256(), 0, -1  # a line of names comes first

    def write(block: bytes) -> None:
        nonlocal size
        target.write(block)
        digest.update(block)
        size += len(block)

    with connect(url, role=ROLE) as connection:
        # A zone of the environment (PGTZ) would be stronger than the connection's own.
        connection.execute("set time zone 'UTC'")
        with connection.transaction(), psycopg.RawCursor(connection) as cursor:
            # No drop between this question and the copy, which is one statement, and so of one moment.
            cursor.execute("lock table usage in access share mode")
            row = cursor.execute(question("month"), [month, end]).fetchone()
            is_dropped, expected = row or (False, 0)
            if is_dropped:
                # Rather than an empty file, which might take the place of one that is not.
                raise BackupError(f"the records of {month:%Y-%m} are gone: retention has dropped them")
            (columns,) = (table.columns for table in tables(connection) if table.name == "usage")
            query = names.SQL(
                "copy (select {} from usage where created_at >= {} and created_at < {}) to stdout (format csv, header)"
            ).format(listed(columns), names.Literal(f"{month} 00:00Z"), names.Literal(f"{end} 00:00Z"))
            with cursor.copy(query) as copy:
                for block in copy:
                    write(packer.compress(block) if packer else bytes(block))
                    written += 1
                    if written % _STEP == 0:
                        on_progress(written, max(written, expected))
            if packer:
                write(packer.flush())
            # By the server's own count.
            rows = cursor.rowcount
    return Exported(f"{month:%Y-%m}", rows, size, digest.hexdigest())


def export_file(url: str, month: date, path: Path, *, on_progress: Progress = lambda *_: None) -> Exported:
    """The same into a file, gzip-compressed where its name ends in .gz. It has its name only when it is complete.

    What was there before stays until then. Raises BackupError, DatabaseUnavailableError, WrongRoleError.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with plain_errors(path):
        try:
            with open(partial, "xb", opener=private) as target:
                done = export(url, month, target, gzip=path.suffix == ".gz", on_progress=on_progress)
                target.flush()
                os.fsync(target.fileno())
            partial.replace(path)
            sync(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    return msgspec.structs.replace(done, file=str(path))
