"""Which database a command works on: the one that CRAFELY_DATABASE_URL names, or the embedded one."""

import argparse
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from crafely.config import Settings, SettingsError
from crafely.db import embedded, migrate
from crafely.db.citus import ENGINES
from crafely.db.hosts import undecided
from crafely.db.migration_files import MigrationError
from crafely.db.session import Database
from crafely.db.tls import secured


class Target(msgspec.Struct, frozen=True):
    """A database that is there."""

    # What libpq takes.
    url: str
    # Whether it is ours to change without asking.
    embedded: bool
    # The psql that fits it.
    psql: str = "psql"

    @property
    def pasteable(self) -> str:
        """The line that opens it in a shell: psql and the database, without its passwords."""
        # libpq itself says which parts are not to be shown: https://www.postgresql.org/docs/current/libpq-connect.html
        secret = {option.keyword.decode() for option in Conninfo.get_defaults() if option.dispchar == b"*"}
        parts: dict[str, Any] = {k: v for k, v in conninfo_to_dict(secured(self.url)).items() if k not in secret}
        return f"{shlex.quote(self.psql)} {shlex.quote(make_conninfo(**parts))}"


@contextmanager
def target(settings: Settings) -> Iterator[Target]:
    """The database of these settings. The embedded server runs while the command does.

    Raises SettingsError or EmbeddedError.
    """
    if settings.pooler_url is not None:
        _check_url("CRAFELY_POOLER_URL", settings.pooler_url)
    if settings.replica_url is not None:
        _check_url("CRAFELY_REPLICA_URL", settings.replica_url)
        if settings.engine == "citus":
            raise SettingsError("CRAFELY_REPLICA_URL: not with CRAFELY_ENGINE=citus: the rows of usage are elsewhere")
    if settings.database_url is None:
        with embedded.running(settings.data_dir, postgres_bin=settings.postgres_bin) as server:
            yield Target(server.url, embedded=True, psql=str(near(server.bin / "psql")))
        return
    _check_url("CRAFELY_DATABASE_URL", settings.database_url)
    if undecided(settings.database_url):
        raise SettingsError(
            "CRAFELY_DATABASE_URL: several hosts, and only one of them writes: say target_session_attrs=primary"
        )
    yield Target(settings.database_url, embedded=False)


def _check_url(name: str, url: str) -> None:
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # libpq's message repeats what it could not read, and that may be the password.
        raise SettingsError(f"{name}: expected a URL such as postgresql://user@host/name") from None


@asynccontextmanager
async def connected(
    settings: Settings, url: str, *roles: str, statement_timeout: float | None = None
) -> AsyncIterator[Database]:
    """The database at a URL for as long as a command works, with a connection for each of these roles.

    Takes the seconds that a statement may run (None: as when it serves). Raises DatabaseUnavailableError or
    WrongRoleError with one line.
    """
    database = ENGINES[settings.engine](
        url,
        size=1,
        pool_timeout=settings.pool_timeout,
        statement_timeout=statement_timeout or settings.statement_timeout,
        roles=roles,
    )
    try:
        await database.open()
        yield database
    finally:
        await database.close()


def database_url(argument: str) -> str:
    """The type of an argument that names a database; its passwords stand elsewhere."""
    try:
        given = conninfo_to_dict(argument)
    except psycopg.ProgrammingError:
        # libpq's message repeats what it could not read, and that may be the password.
        raise argparse.ArgumentTypeError("expected a URL such as postgresql://user@host/name") from None
    if {"password", "sslpassword"} & set(given):
        raise argparse.ArgumentTypeError(
            "every user of the machine can read a password in an argument: say it by CRAFELY_DATABASE_URL, PGPASSWORD "
            "or a password file"
        )
    return argument


def require_schema(found: Target) -> None:
    """Raises MigrationError unless the database has every migration of this release. Only reads."""
    if lacking := [migration.id for migration in migrate.status(found.url) if migration.state in {"pending", "edited"}]:
        raise MigrationError(f"the database lacks {len(lacking)} migrations ({lacking[0]} …): run crafely migrate up")


def near(path: Path) -> Path:
    """The path as it is typed from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
