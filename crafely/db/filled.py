"""The scratch database of ``crafely check``: migrated from nothing, and filled so that a planner believes it.

The rows are files in ``filling/``, run in the order of their numbers with triggers at rest, and always the same within
a month: tens of thousands where tables grow, of several hundred users, with nulls, revoked and expired keys, and
deleted rows. The database is kept as long as the migrations, the filling and the month (partitions are made for it)
stay what they are, which its name tells.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql as names

from crafely.db import migrate
from crafely.db.scratch import beside

# For a server of its own: nothing outlives a crash, and statistics change only when the filling does.
OPTIONS = MappingProxyType(
    {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
)
# So many rows of a table are looked at that most are looked at whole, and every run finds the same.
_STATISTICS = "200"
_PREFIX = "crafely_check_"
_LOCK = 1668440423

# Told what is done, and how much of all is, from 0 to 1.
Progress = Callable[[str, float], None]


def ensure(url: str, on_progress: Progress = lambda *_: None) -> str:
    """The URL of the scratch database on a server, made where it is missing or outdated.

    Takes the URL of a superuser, whose databases called ``crafely_check_…`` are taken for ours: outdated ones are
    dropped, unless somebody is connected. Two at once take turns. Raises MigrationError, psycopg.Error.
    """
    name = _PREFIX + _key()
    scratch = beside(url, name)
    with psycopg.connect(url, autocommit=True) as connection:
        if _is_filled(connection, name):
            return scratch
        connection.execute("select pg_advisory_lock(%s)", [_LOCK])
        if _is_filled(connection, name):  # by the one before us
            return scratch
        _drop_outdated(connection, name)
        connection.execute(names.SQL("create database {}").format(names.Identifier(name)))
        fill(scratch, on_progress)
        # Last of all: a database that was left half full does not say so.
        connection.execute(names.SQL("comment on database {} is 'filled'").format(names.Identifier(name)))
    return scratch


def fill(url: str, on_progress: Progress = lambda *_: None) -> None:
    """Migrates an empty database and fills it. Raises MigrationError, psycopg.Error."""
    files = _files()
    # The migrations, each file, and the statistics.
    steps = len(files) + 2
    on_progress("migrating", 0)
    migrate.up(url)
    with psycopg.connect(url, autocommit=True) as connection:
        # The rows refer to each other rightly by construction; triggers, which also check foreign keys, rest.
        connection.execute("set session_replication_role = replica")
        for number, path in enumerate(files, 1):
            on_progress(f"filling {path.stem.partition('_')[2]}", number / steps)
            connection.execute(path.read_bytes())
        on_progress("gathering statistics", (steps - 1) / steps)
        connection.execute(f"set default_statistics_target = {_STATISTICS}".encode())
        connection.execute("vacuum (analyze)")
    on_progress("done", 1)


def _key() -> str:
    """What the database follows from."""
    told = [
        datetime.now(UTC).strftime("%Y-%m"),
        *(f"{name} {checksum}" for name, checksum in migrate.expected().items()),
    ]
    told += [path.read_text(encoding="utf-8") for path in (*_files(), Path(__file__))]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def _files() -> list[Path]:
    return sorted((Path(__file__).parent / "filling").glob("*.sql"))


def _is_filled(connection: psycopg.Connection[Any], name: str) -> bool:
    query = "select shobj_description(oid, 'pg_database') from pg_database where datname = %s"
    return connection.execute(query, [name]).fetchone() == ("filled",)


def _drop_outdated(connection: psycopg.Connection[Any], name: str) -> None:
    """Drops what is left of ``name``, and whatever else of ours nobody is connected to."""
    found = connection.execute(
        "select datname from pg_database d where starts_with(datname, %s)"
        # The drop would wait some seconds for them.
        " and (datname = %s or not exists (select from pg_stat_activity a where a.datid = d.oid))",
        [_PREFIX, name],
    )
    for (old,) in found.fetchall():
        with suppress(psycopg.errors.ObjectInUse):
            command = "drop database {} with (force)" if old == name else "drop database {}"
            connection.execute(names.SQL(command).format(names.Identifier(old)))
