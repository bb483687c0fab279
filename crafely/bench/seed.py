"""What is in the bench's databases: keys and usage that follow from a number, so that any program can ask for them.

A key's public half is a number of sixteen digits that pgbench can compute, too. Like random ones they come in no order:
keys made one after the other are no neighbours in the index. Ten keys belong to a user: number n to
``user_<(n - 1) // 10>``. All have one secret, made at random for each database, so that any of them can be presented.
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import msgspec
import psycopg
from psycopg.rows import TupleRow
from rich.progress import Progress

from crafely.auth import keys
from crafely.auth.hashing import Hasher
from crafely.bench import BenchError, statement
from crafely.bench.place import execute
from crafely.config import Settings
from crafely.db.session import connect

# key_id = BASE + n * STEP % RANGE * ZEROS. The step is the golden ratio's part of the range, which spreads any count of
# numbers evenly, and has no divisor with it, so that no two meet. Within 64 bits up to a hundred million.
BASE, STEP, RANGE, ZEROS = 10**15, 61_803_398_873, 10**11, 10**4
KEYS_PER_USER = 10
# As statements/seed_usage.sql has it.
USAGE_PER_USER = 1000
PERMISSIONS = "{agents:read,agents:write,threads:read,usage:write,keys:verify,keys:write}"
# Rows that are committed at once: what an interrupted run has to do again.
CHUNK = 50_000


class Seed(msgspec.Struct, frozen=True):
    """What is in a database."""

    secret: str
    hashed_key: str
    keys: int
    usage_records: int
    usage_until: datetime

    def token(self, number: int) -> str:
        """The API key of a number."""
        return keys.token("live", key_id(number), self.secret)


def key_id(number: int) -> str:
    """The public half of a key."""
    return str(BASE + number * STEP % RANGE * ZEROS)


def row_id(number: int) -> str:
    """The id of a key's row, as long as a real one."""
    return f"key_00000000-0000-4000-8000-{number:012d}"


def user_id(number: int) -> str:
    """Whose a key is."""
    return f"user_{(number - 1) // KEYS_PER_USER}"


def seed(url: str, settings: Settings, progress: Progress, *, keys: int, usage_records: int = 0) -> Seed:
    """Fills a database of the bench's up to so many keys and records of usage; what is there stays. Says what is there.

    Usage belongs to ten keys for each thousand records, which must exist. Raises BenchError when there is more in it
    already: then figures would be called by a wrong name.
    """
    with connect(url) as connection:
        found = _read(connection) or _begin(connection, settings)
        _check(connection, found, settings)
        if found.keys > keys or (usage_records and found.usage_records > usage_records):
            raise BenchError(
                f"{connection.info.dbname} holds {found.keys} keys and {found.usage_records} records, which is more "
                "than is wanted: drop the database"
            )
        if found.keys < keys or found.usage_records < usage_records:
            execute(connection, "fast_seed")
        if found.keys < keys:
            _keys(connection, found, keys, progress)
        execute(connection, "after_keys")
        if found.usage_records < usage_records:
            _usage(connection, found, usage_records, progress)
        with _shown(progress, "reading it all once"):
            execute(connection, "read_all")
        done = _read(connection)
    if done is None:
        raise BenchError("somebody else has emptied the database")
    return done


def _read(connection: psycopg.Connection[TupleRow]) -> Seed | None:
    row = execute(connection, "seeded").fetchone()
    return None if row is None else Seed(*row)


def _check(connection: psycopg.Connection[TupleRow], found: Seed, settings: Settings) -> None:
    """Raises BenchError when what is there is not what would be made now."""
    with _hasher(settings) as hasher:
        outdated = asyncio.run(hasher.verify(found.hashed_key, found.secret)).outdated
    if outdated:
        # Each key would be hashed again when it is first presented.
        raise BenchError(f"{connection.info.dbname} was seeded with another cost of argon2: set it so, or drop it")
    first = execute(connection, "first_key", row_id(1)).fetchone()
    if first not in {None, (key_id(1),)}:
        raise BenchError(f"{connection.info.dbname} was seeded by another release: drop the database")


@contextmanager
def _hasher(settings: Settings) -> Iterator[Hasher]:
    hasher = Hasher(settings)
    try:
        yield hasher
    finally:
        hasher.close()


def _begin(connection: psycopg.Connection[TupleRow], settings: Settings) -> Seed:
    secret = "".join(secrets.choice(keys.ALPHABET) for _ in range(keys.SECRET_LENGTH))
    with _hasher(settings) as hasher:
        hashed_key = asyncio.run(hasher.hash(secret))
    execute(connection, "set_secret", secret, hashed_key)
    found = _read(connection)
    if found is None:
        raise BenchError("the database does not keep what it is given")
    return found


def _keys(connection: psycopg.Connection[TupleRow], found: Seed, count: int, progress: Progress) -> None:
    if found.keys == 0:
        execute(connection, "before_keys")
    task = progress.add_task(f"seeding {count:,} keys", total=count, completed=found.keys)
    for first in range(found.keys + 1, count + 1, CHUNK):
        last = min(first + CHUNK - 1, count)
        with connection.transaction(), connection.cursor() as cursor:
            with cursor.copy(statement("copy_keys")) as copy:
                tail = f"\t{found.hashed_key}\tbench\tcrf_live_1000\t{PERMISSIONS}\ttrue\t"
                for begin in range(first, last + 1, 1000):
                    numbers = range(begin, min(begin + 1000, last + 1))
                    copy.write("".join(f"{row_id(n)}\t{key_id(n)}{tail}{user_id(n)}\n" for n in numbers))
            execute(connection, "set_keys", last)
        progress.update(task, completed=last)
    progress.remove_task(task)
    with _shown(progress, "making the index"):
        execute(connection, "after_keys")
    _settle(connection, "api_keys", progress)


def _usage(connection: psycopg.Connection[TupleRow], found: Seed, count: int, progress: Progress) -> None:
    task = progress.add_task(f"seeding {count:,} records of usage", total=count, completed=found.usage_records)
    for first in range(found.usage_records + 1, count + 1, CHUNK):
        last = min(first + CHUNK - 1, count)
        with connection.transaction():
            execute(connection, "seed_usage", first, last, found.usage_until)
            execute(connection, "set_usage_records", last)
        progress.update(task, completed=last)
    progress.remove_task(task)
    for table in ("usage", "usage_daily"):
        _settle(connection, table, progress)


def _settle(connection: psycopg.Connection[TupleRow], table: str, progress: Progress) -> None:
    """Leaves nothing to be done in the background while others are measured."""
    with _shown(progress, f"vacuum of {table}, and a checkpoint"):
        connection.execute(statement("settle").replace(b"{table}", table.encode()))
        execute(connection, "checkpoint")


@contextmanager
def _shown(progress: Progress, words: str) -> Iterator[None]:
    task = progress.add_task(words, total=None)
    yield
    progress.remove_task(task)
