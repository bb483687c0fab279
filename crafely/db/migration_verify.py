"""``crafely migrate verify``: every migration there, back and there again, while others read and write.

What a rollback leaves behind, what it takes too much and what comes back different is found by comparing the catalogue
before and after (snapshot.py). The locks are those that the migration's own session holds, looked at every few
milliseconds and once more just before it commits.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from crafely.db import migrate, scratch, snapshot
from crafely.db.contract import Finding
from crafely.db.migrate import MigrationError
from crafely.db.snapshot import Difference, Object
from crafely.db.traffic import traffic

# How often a running migration's locks are looked at, in seconds.
LOOK = 0.005

# Its locks on tables that were there before, by the name of the table that a partition belongs to.
_LOCKS = """
    select coalesce(pg_partition_root(l.relation)::oid, l.relation), l.mode
    from pg_locks as l
    inner join pg_stat_activity as a on a.pid = l.pid
    where a.application_name = 'crafely migrate'
        and a.datname = current_database()
        and l.locktype = 'relation'
        and l.granted
        and l.relation = any(%s)
"""
_TABLES = """
    select oid, relname, pg_relation_filenode(oid), relkind
    from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and relname !~ '^_?yoyo_'
"""
# From the weakest to the strongest: https://www.postgresql.org/docs/current/explicit-locking.html
_MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)


class Held(msgspec.Struct, frozen=True):
    """The strongest lock that a migration held on a table that was there before, and for how long at most, in ms."""

    table: str
    mode: str
    ms: float


class Verified(msgspec.Struct, frozen=True):
    """What one migration did: times in ms; ``rewrites``: the tables that it wrote anew, row by row.

    ``read_wait_ms`` and ``write_wait_ms`` are the slowest statements that others ran meanwhile.
    """

    id: str
    up_ms: float
    down_ms: float
    locks: list[Held]
    rewrites: list[str]
    read_wait_ms: float
    write_wait_ms: float
    statements: int


class Report(msgspec.Struct, frozen=True):
    """Every migration, and what does not hold."""

    migrations: list[Verified]
    findings: list[Finding]


def verify(
    server: str,
    folder: Path | None = None,
    *,
    only: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda _, __, ___: None,
) -> Report:
    """Runs every migration (or ``only`` the one of this id) up, down and up on a database made for it.

    ``server`` is the URL of a server that nobody's data is on. ``on_progress`` gets an id, how many are done, and how
    many there are. Raises MigrationError for a file that breaks a rule or an unknown id, and psycopg.Error.
    """
    place = folder or migrate.folder()
    ids = list(migrate.expected(place))
    if only is not None and only not in ids:
        raise MigrationError(f"{only}: the folder has no such migration")
    wanted = [name for name in ids if only in (None, name)]
    verified: list[Verified] = []
    findings: list[Finding] = []
    with scratch.database(server) as url:
        if earlier := ids[: ids.index(wanted[0])]:
            migrate.up(url, place, to=earlier[-1])
        for done, name in enumerate(wanted):
            on_progress(name, done, len(wanted))
            try:
                verified.append(_one(url, place, name, findings))
            except MigrationError as error:
                # Where something was left behind, that is why it cannot be made again.
                if not findings:
                    findings.append(of_error(error, name))
                break
    on_progress("", len(wanted), len(wanted))
    return Report(verified, findings)


def of_error(error: MigrationError, name: str) -> Finding:
    """A migration that stopped, as a finding in its file."""
    path, line, problem = migrate.split(str(error), f"{name}.sql")
    return Finding(f"{migrate.folder().name}/{path}", line, "runs", problem)


def _one(url: str, folder: Path, name: str, findings: list[Finding]) -> Verified:
    """Tries one, adds to the findings, and leaves it applied. Raises MigrationError when one of its files fails."""
    files = _Files(folder, name)
    with traffic(url) as waits:
        before = _snapshot(url)
        with _watched(url) as watch:
            begin = time.monotonic()
            migrate.up(url, folder, to=name, before_commit=lambda _: watch.look())
            up_ms = (time.monotonic() - begin) * 1000
        # A statement that waited for the migration has its answer only now.
        waits.another_round()
        slowest = waits.read_ms, waits.write_ms, waits.statements
        refused = dict(waits.refused)
        after = _snapshot(url)
        begin = time.monotonic()
        migrate.down(url, folder)
        down_ms = (time.monotonic() - begin) * 1000
        findings += [files.of_refused(what, why) for what, why in sorted(refused.items())]
        findings += [files.of_rollback(one) for one in snapshot.compare(before, _snapshot(url))]
        migrate.up(url, folder, to=name)
        findings += [files.of_repeat(one) for one in snapshot.compare(after, _snapshot(url))]
    return Verified(name, up_ms, down_ms, watch.held, watch.rewrites, *slowest)


def _snapshot(url: str) -> list[Object]:
    """What a database holds. Roles are the server's: a rollback leaves them to the other databases that use them."""
    with psycopg.connect(url, autocommit=True) as connection:
        return [one for one in snapshot.take(connection) if one.kind != "role"]


class _Watch:
    """The locks of the migration that runs in a database, on tables that were there before."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, application_name="crafely watch")
        self._turn = threading.Lock()
        self._seen: dict[tuple[int, str], list[float]] = {}
        self._before = self._tables()

    def _tables(self) -> dict[int, tuple[Any, ...]]:
        return {oid: rest for oid, *rest in self._connection.execute(_TABLES).fetchall()}  # type: ignore[misc]

    def look(self) -> None:
        """Notes what is held now."""
        with self._turn:
            now = time.monotonic()
            rows = self._connection.execute(_LOCKS, [list(self._before)]).fetchall()
            for key in rows:
                times = self._seen.setdefault(key, [now, now])
                times[1] = time.monotonic()

    def end(self) -> None:
        """Sums up, when the migration has ended."""
        strongest: dict[int, tuple[int, float]] = {}
        for (oid, mode), (first, last) in self._seen.items():
            found = _MODES.index(mode), max((last - first) * 1000, LOOK * 1000)
            strongest[oid] = max(strongest.get(oid, (-1, 0.0)), found)
        self.held = [
            Held(self._before[oid][0], _MODES[mode], round(ms, 1)) for oid, (mode, ms) in sorted(strongest.items())
        ]
        after = self._tables()
        self.rewrites = [
            row[0] for oid, row in self._before.items() if oid in after and row[2] == "r" and after[oid][1] != row[1]
        ]
        self._connection.close()


@contextmanager
def _watched(url: str) -> Iterator[_Watch]:
    watch = _Watch(url)
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(LOOK):
            watch.look()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        watch.end()


class _Files:
    """Where a finding about a migration belongs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._shown = f"{migrate.folder().name}/{name}"
        self._up = (folder / f"{name}.sql").read_text()
        self._down = (folder / f"{name}.rollback.sql").read_text()

    def of_rollback(self, one: Difference) -> Finding:
        """Something that is not as it was when the migration was rolled back."""
        made = _line_of(self._up, one)
        if one.wanted is None:
            problem = f"leaves {one.object} behind, which {self._shown}.sql:{made} made: drop it"
        elif one.found is None:
            problem = f"takes {one.object} away, which was there before: make it again ({' '.join(one.wanted.split())})"
        else:
            problem = f"leaves {one}, as it was before {self._shown}.sql:{made}"
        return Finding(f"{self._shown}.rollback.sql", _line_of(self._down, one), "rollback", problem)

    def of_repeat(self, one: Difference) -> Finding:
        """Something that is other when the migration has run a second time."""
        line = _line_of(self._up, one)
        problem = f"after down and up again, {one}: it must come out the same"
        return Finding(f"{self._shown}.sql", line, "repeat", problem)

    def of_refused(self, what: str, why: str) -> Finding:
        """A statement that worked before the migration and does not after it."""
        problem = f"`{what}` worked before it and is refused after it ({why}): what runs now would break"
        line = line_naming(self._up, *re.findall(r'"(\w+)"', why), what.rsplit(maxsplit=1)[-1])
        return Finding(f"{self._shown}.sql", line, "traffic", problem)


def _line_of(text: str, one: Difference) -> int:
    """The line of a file that names an object: its own name, else its table's."""
    words = [name.split("(")[0].strip('"').split(".")[-1].split(" ")[-1] for name in (one.name, one.parent)]
    return line_naming(text, *words)


def line_naming(text: str, *words: str) -> int:
    """The first line of a file, comments aside, with the first of these words that is in it at all; 1 without any."""
    for word in filter(None, words):
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(rf"\b{re.escape(word)}\b", line) and not line.lstrip().startswith("--"):
                return number
    return 1
