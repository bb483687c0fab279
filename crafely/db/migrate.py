"""Migrations: yoyo's tables and log, with everything checked before anything runs.

What yoyo 9.0 does and why this module does not leave it at that: its ``migration_hash`` is a hash of the file's name
(here of the content, so edited history is seen); it commits a migration before it marks it as applied (here both are
one transaction); it skips a migration with a bad ``depends`` and takes a missing rollback for a success (here both are
refused); its lock is a row that outlives its owner (here an advisory lock, which cannot).

migrations/README.md says what the files look like.
"""

import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import psycopg
from psycopg import generators, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI

from crafely.db import migration_index
from crafely.db.migration_files import MigrationError, Script, create, load, statements
from crafely.db.tls import secured

__all__ = [
    "Migration",
    "MigrationError",
    "down",
    "expected",
    "folder",
    "new",
    "pending",
    "reading",
    "reset",
    "split",
    "status",
    "up",
]

# How long a runner waits for another one to finish, and how often it asks, in seconds.
LOCK_WAIT = 60.0
LOCK_POLL = 0.1
# A deadlock is bad luck and no mistake in a file: the loser has changed nothing, and tries again, so often in all.
TRIES = 3

_TABLE = "_yoyo_migration"
# A migration that waits for a busy table makes everybody queue behind it: better that it gives up and is run again.
# The second setting ends the statement of a runner that has died; without it the statement would run on unseen.
_RUNNER = "-c lock_timeout=5s -c client_connection_check_interval=1s"
_READER = "-c default_transaction_read_only=on"
# The login of a server may be allowed nothing but to take on its roles: one that may read the history will do.
_AS_READER = """select set_config('role', rolname, false) from pg_roles, to_regclass('_yoyo_migration') history
    where pg_has_role(oid, 'member') and has_table_privilege(oid, history, 'select')
        and not has_table_privilege(history, 'select') limit 1"""

Progress = Callable[[str], None]


class Migration(msgspec.Struct, frozen=True):
    """One line of the history.

    ``checksum`` is the file's (64 hex digits), or the database's where the file is missing. ``applied_at`` is in UTC.
    ``edited``: applied, and a file was changed since. ``missing``: applied, and there is no such file.
    """

    id: str
    checksum: str
    applied_at: datetime | None
    state: Literal["applied", "pending", "edited", "missing"]


def folder() -> Path:
    """The folder of the migrations: the one inside an installed wheel, else the one beside the package."""
    package = Path(__file__).parent.parent
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def expected(folder: Path | None = None) -> dict[str, str]:
    """The checksum of every migration in the folder, by id, in order.

    Reads and checks all files and asks no database. Raises MigrationError for the first file that breaks a rule.
    """
    return {script.id: script.hash for script in _load(folder)}


def pending(rows: Iterable[tuple[str, str]], expected: Mapping[str, str]) -> list[str]:
    """The ids that a database lacks, or holds with another checksum.

    Takes the pairs (migration_id, migration_hash) of ``_yoyo_migration``, and what ``expected`` gave. Rows that are not
    expected do not matter: while a new version is rolled out, the old one goes on serving on the new schema.
    """
    applied = set(rows)
    return [name for name, checksum in expected.items() if (name, checksum) not in applied]


def status(url: str, folder: Path | None = None) -> list[Migration]:
    """The history of a database and of the folder, by id. Only reads, in a session that could not write.

    ``url`` is anything libpq takes. Raises MigrationError for a bad file, and when the database cannot be asked.
    """
    scripts = _load(folder)
    with reading(url) as connection:
        connection.execute(_AS_READER)
        return _history(connection, scripts)


@contextmanager
def reading(url: str) -> Iterator[psycopg.Connection]:
    """A session on a database that could not write if it tried. Raises MigrationError for whatever goes wrong in it."""
    with _one_line_errors(), _connect(url, _READER) as connection:
        yield connection


def up(
    url: str,
    folder: Path | None = None,
    *,
    on_progress: Progress = lambda _: None,
    to: str | None = None,
    before_commit: Progress = lambda _: None,
) -> list[str]:
    """Apply what is pending, in order, up to and including the id ``to``; gives the ids applied.

    ``before_commit`` is called with an id when its file has run and its locks are still held.

    Each file and its mark are one transaction: a crash leaves it wholly applied or not at all. A second runner waits
    (at most LOCK_WAIT seconds) and then finds nothing to do. Raises MigrationError: a bad file, a history that is not
    the folder's, a failing statement (with file and line), a lock that did not come.
    """
    scripts = _load(folder)
    if to is not None and to not in {script.id for script in scripts}:
        raise MigrationError(f"{to}: the folder has no such migration")
    with _locked(url, on_progress) as backend:
        return _up(backend, scripts, on_progress, to, before_commit)


def down(
    url: str, folder: Path | None = None, *, steps: int | None = 1, on_progress: Progress = lambda _: None
) -> list[str]:
    """Roll back the newest ``steps`` migrations (None: all of them); gives the ids rolled back, newest first.

    Raises MigrationError as ``up`` does.
    """
    if steps is not None and steps < 1:
        raise MigrationError(f"steps: {steps} is not a whole number from 1")
    scripts = _load(folder)
    with _locked(url, on_progress) as backend:
        return _down(backend, scripts, on_progress, steps)


def reset(
    url: str,
    folder: Path | None = None,
    *,
    embedded: bool,
    force: str | None = None,
    on_progress: Progress = lambda _: None,
) -> None:
    """Roll everything back and apply it again: all data is lost.

    Raises MigrationError, with nothing touched, unless the database is the embedded one or ``force`` is its very name.
    """
    scripts = _load(folder)
    with _locked(url, on_progress) as backend:
        (name,) = backend.connection.execute("select current_database()").fetchone()
        if not embedded and force != name:
            raise MigrationError(f"reset destroys all data of the database {name!r}: only its name can force that")
        _down(backend, scripts, on_progress, None)
        _up(backend, scripts, on_progress)


def new(name: str, folder: Path | None = None) -> tuple[Path, Path]:
    """Write the next migration and its rollback, with headers to fill in; gives both paths.

    ``name`` is a topic such as ``agents-archive``. Raises MigrationError for another shape, or when a file cannot be
    written.
    """
    return create(_place(folder), name)


def split(message: str, file: str) -> tuple[str, int, str]:
    """File, line and problem of a MigrationError's message; line 1, and ``file``, where it names none."""
    found = re.match(r"(?P<file>\d{4}\.[\w.-]+\.sql)(?::(?P<line>\d+))?: (?P<problem>.*)", message)
    if not found:
        return file, 1, message
    return found["file"], int(found["line"] or 1), found["problem"]


def _place(place: Path | None) -> Path:
    return place or folder()


def _load(place: Path | None) -> list[Script]:
    return load(_place(place))


class _Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo ships no types
    """yoyo's SQL for its own tables, on a connection of ours."""

    # _up has created the tables; yoyo would ask information_schema again for each file.
    _internal_schema_updated = True

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection:
        return _connect(dburi.database, _RUNNER)

    def get_log_data(self, migration: Script, operation: str) -> dict[str, Any]:
        # yoyo's own asks DNS about this host, which may hang, and the password file about this user, which fails in
        # some containers. Whom the server took us for tells an auditor more.
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id,
            "migration_hash": migration.hash,
            "operation": operation,
            "username": self.connection.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
        }


def _connect(url: str, options: str) -> psycopg.Connection:
    try:
        params = conninfo_to_dict(url)
    except psycopg.Error:
        # libpq's message repeats what it could not read, and that may be the password.
        raise MigrationError("the database's URL cannot be read: it looks like postgresql://host/name") from None
    # What the DBA sets wins: the last one counts.
    theirs = params.get("options") or os.environ.get("PGOPTIONS", "")
    connect_timeout = params.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT", "10")
    conninfo = make_conninfo(
        secured(url),
        options=f"{options} {theirs}",
        connect_timeout=connect_timeout,
        client_encoding="UTF8",
        application_name="crafely migrate",
    )
    return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise MigrationError(_one_line(error)) from error


@contextmanager
def _locked(url: str, on_progress: Progress) -> Iterator[_Backend]:
    """A backend that nobody else migrates with. The lock lives exactly as long as the connection that does the work.

    It is polled: a session that blocks on an advisory lock has a snapshot, ``create index concurrently`` waits for all
    snapshots, and the two would wait for each other.
    """
    with _one_line_errors(), _Backend(DatabaseURI(*[None] * 5, url, {}), _TABLE) as backend:
        deadline = time.monotonic() + LOCK_WAIT
        told = False
        while backend.connection.execute("select pg_try_advisory_lock(1668440422, 1)").fetchone() != (True,):
            holder = backend.connection.execute(
                "select pid from pg_locks join pg_database on pg_database.oid = pg_locks.database"
                " where datname = current_database() and classid = 1668440422 and objid = 1 and granted"
            ).fetchone()
            who = f"server process {holder[0]}" if holder else "another session"
            if time.monotonic() > deadline:
                raise MigrationError(f"{who} has held the migration lock for {LOCK_WAIT:g} s: see pg_stat_activity")
            if not told:
                on_progress(f"waiting for {who}, which is migrating")
                told = True
            time.sleep(LOCK_POLL)
        yield backend


def _history(connection: psycopg.Connection, scripts: list[Script]) -> list[Migration]:
    rows: dict[str, tuple[str, datetime]] = {}
    if connection.execute("select to_regclass(%s)", [_TABLE]).fetchone() != (None,):
        applied = connection.execute("select migration_id, migration_hash, applied_at_utc from _yoyo_migration")
        rows = {name: (checksum, at.replace(tzinfo=UTC)) for name, checksum, at in applied}
    history = [Migration(name, *row, "missing") for name, row in rows.items() if name not in {s.id for s in scripts}]
    for script in scripts:
        checksum, at = rows.get(script.id, (script.hash, None))
        state: Literal["applied", "pending", "edited"] = "applied" if at else "pending"
        history.append(Migration(script.id, script.hash, at, state if checksum == script.hash else "edited"))
    return sorted(history, key=lambda migration: migration.id)


def _sound_history(connection: psycopg.Connection, scripts: list[Script]) -> list[Migration]:
    """The history, refused where the folder does not tell how the database came about."""
    history = _history(connection, scripts)
    gap = None
    for migration in history:
        match migration.state:
            case "edited":
                raise MigrationError(
                    f"{migration.id}.sql: it or its rollback was changed after it was applied on"
                    f" {migration.applied_at:%Y-%m-%d}; put both back and write a new migration"
                )
            case "missing":
                raise MigrationError(
                    f"{migration.id}: applied here, but the folder lacks it; is this an older version?"
                )
            case "pending":
                gap = gap or migration.id
            case "applied" if gap:
                raise MigrationError(f"{gap}.sql: comes before {migration.id}, which is applied already; renumber it")
    return history


def _up(
    backend: _Backend,
    scripts: list[Script],
    on_progress: Progress,
    to: str | None = None,
    before_commit: Progress = lambda _: None,
) -> list[str]:
    history = _sound_history(backend.connection, scripts)
    if internalmigrations.needs_upgrading(backend):
        internalmigrations.upgrade(backend)
    wanted = {migration.id for migration in history if migration.state == "pending"}
    todo = [script for script in scripts if script.id in wanted and (to is None or script.id <= to)]
    for script in todo:
        on_progress(f"applying {script.id}")

        def mark(script: Script) -> None:
            before_commit(script.id)
            backend.mark_one(script)

        _run(backend, script, f"{script.id}.sql", script.up, mark, on_progress)
    return [script.id for script in todo]


def _down(backend: _Backend, scripts: list[Script], on_progress: Progress, steps: int | None) -> list[str]:
    history = _sound_history(backend.connection, scripts)
    wanted = {migration.id for migration in history if migration.state == "applied"}
    todo = [script for script in reversed(scripts) if script.id in wanted][:steps]
    for script in todo:
        on_progress(f"rolling back {script.id}")
        _run(backend, script, f"{script.id}.rollback.sql", script.down, backend.unmark_one, on_progress)
    return [script.id for script in todo]


def _run(
    backend: _Backend, script: Script, file: str, text: str, mark: Callable[[Script], None], on_progress: Progress
) -> None:
    """Run a file as one text, which the server takes apart itself, and record it in the same transaction."""
    connection = backend.connection
    if not script.transactional and migration_index.prepare(connection, file, text, on_progress):
        _execute(connection, script, file, text)
    for left in reversed(range(TRIES)):
        try:
            # psycopg's transaction and not yoyo's, whose ROLLBACK on a lost connection would hide why it was lost.
            with connection.transaction():
                if script.transactional:
                    _execute(connection, script, file, text)
                # What a file sets for itself must not reach yoyo's tables or the next file.
                connection.execute("reset role; reset all")
                mark(script)
        except psycopg.Error as error:
            # A deferred constraint, or yoyo's tables.
            raise MigrationError(f"{file}: not recorded as run: {_one_line(error)}") from error
        except MigrationError as error:
            if not left or not isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
                raise
            on_progress(f"{file}: a deadlock, in which another session had its way: once more")
        else:
            return


def _execute(connection: psycopg.Connection, script: Script, file: str, text: str) -> None:
    """Give the server a file as it is. Its statements answer one by one, which tells where an error stands."""
    try:
        with connection.lock:
            connection.pgconn.send_query(text.encode())
            results = connection.wait(generators.execute(connection.pgconn))
        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(results[-1])
    except psycopg.Error as error:
        if position := error.diag.statement_position:
            file = f"{file}:{text.count(chr(10), 0, int(position) - 1) + 1}"
        elif error.diag.sqlstate and len(results) <= len(begins := [line for line, _ in statements(text)]):
            file = f"{file}:{begins[len(results) - 1]}"
        hint = ""
        if not script.transactional:
            hint = migration_index.advice(connection, text)
        elif isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            hint = ": another session is in the way; nothing was changed, it is safe to run again"
        raise MigrationError(f"{file}: {_one_line(error)}{hint}") from error


def _one_line(error: psycopg.Error) -> str:
    # The server's detail is left out: it may hold a row's values.
    return error.diag.message_primary or " ".join(str(error).split())
