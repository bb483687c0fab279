"""Readers and writers for any schema: what a live database goes through while a migration runs.

It knows no table by name: rows are made from what the catalogue says of columns and foreign keys. A table whose checks
refuse such rows gets reads and updates that find nothing, which take the same locks.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg import sql

# Between two statements of a thread, in seconds: traffic, and not a flood that hides the migration's own time.
PAUSE = 0.005
# Rows are made for as long as there are fewer.
ROWS = 200
# Until each statement has run once.
START_SECONDS = 60.0

_VALUES: dict[str, LiteralString] = {
    "bool": "true",
    "date": "current_date",
    "jsonb": "'{}'",
    "text": "gen_random_uuid()::text",
    "timestamptz": "now()",
    "varchar": "gen_random_uuid()::text",
    **dict.fromkeys(("int2", "int4", "int8", "numeric"), "1"),
}
_COLUMNS = """
    select c.oid, c.relname, a.attname, t.typname, t.typelem <> 0 and t.typlen = -1, k.confrelid, f.attname
    from pg_class as c
    inner join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    inner join pg_type as t on t.oid = a.atttypid
    left join pg_constraint as k on k.conrelid = c.oid and k.contype = 'f' and a.attnum = any(k.conkey)
        and not exists (
            select
            from pg_attribute as o
            where o.attrelid = c.oid and o.attnum = any(k.conkey) and not o.attnotnull
        )
    left join pg_attribute as f on f.attrelid = k.confrelid
        and f.attnum = k.confkey[array_position(k.conkey, a.attnum)]
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and c.relname !~ '^_?yoyo_' and a.attnotnull and not a.atthasdef and a.attidentity = ''
    order by c.oid, a.attnum
"""
_TABLES = """
    select c.relname, (
        select a.attname from pg_attribute as a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attidentity = '' and a.attgenerated = ''
        order by a.attnum limit 1
    )
    from pg_class as c
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and c.relname !~ '^_?yoyo_'
    order by c.oid
"""


class Waits(msgspec.Struct):
    """What the traffic met: its slowest statements in ms, how many it ran, and what it was refused."""

    read_ms: float = 0.0
    write_ms: float = 0.0
    statements: int = 0
    refused: dict[str, str] = {}
    # Of the readers and of the writers.
    rounds: list[int] = msgspec.field(default_factory=lambda: [0, 0])

    def another_round(self) -> None:
        """Returns when each statement has run once more, wholly after now; at the latest after START_SECONDS."""
        enough = [done + 2 for done in self.rounds]
        end = time.monotonic() + START_SECONDS
        while any(done < least for done, least in zip(self.rounds, enough, strict=True)) and time.monotonic() < end:
            time.sleep(PAUSE)


class _Work(msgspec.Struct):
    """One statement that is run again and again."""

    what: str
    statement: sql.Composed
    makes_rows: bool = False
    rows: int = 0
    # Once it has worked, an error is news.
    works: bool = False
    useless: bool = False


@contextmanager
def traffic(url: str) -> Iterator[Waits]:
    """Reads and writes every table that is there now, each in a thread, until the block ends.

    Begins the block when each statement has run once. An error that a statement of rows meets later is told in
    ``refused``; that a table is gone is none. Raises psycopg.Error when the tables cannot be asked for.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        reads, writes = _reads(connection), _writes(connection)
    waits = Waits()
    ended = threading.Event()
    threads, ready = [], []
    for number, work in enumerate((reads, writes)):
        ready.append(threading.Event())
        thread = threading.Thread(target=_run, args=(url, work, waits, number, ready[-1], ended), daemon=True)
        threads.append(thread)
        thread.start()
    try:
        for event in ready:
            event.wait(START_SECONDS)
        # What the warming-up took says nothing.
        waits.read_ms = waits.write_ms = 0.0
        yield waits
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _run(
    url: str, work: list[_Work], waits: Waits, number: int, ready: threading.Event, ended: threading.Event
) -> None:
    slowest = ("read_ms", "write_ms")[number]
    try:
        # Not prepared: a plan that a migration makes stale is prepared anew by whoever serves (channel.py).
        with psycopg.connect(
            url, autocommit=True, prepare_threshold=None, application_name="crafely traffic"
        ) as connection:
            while not ended.is_set():
                for one in work:
                    _once(connection, one, waits, slowest)
                    # What is measured is a wait for a lock, so between two statements others may have the processor.
                    if ready.is_set() and ended.wait(PAUSE):
                        break
                waits.rounds[number] += 1
                ready.set()
                if not work:
                    ended.wait(PAUSE)
    except psycopg.Error as error:
        waits.refused["connection"] = str(error)
    finally:
        # Nobody waits for one that has gone.
        waits.rounds[number] = sys.maxsize
        ready.set()


def _once(connection: psycopg.Connection[Any], one: _Work, waits: Waits, slowest: str) -> None:
    if one.useless:
        return
    begin = time.monotonic()
    try:
        # When there are enough, the statement is still tried.
        with connection.transaction(force_rollback=True) if one.rows >= ROWS else nullcontext():
            done = connection.execute(one.statement)
    except psycopg.errors.UndefinedTable:
        one.useless = True
    except psycopg.errors.DeadlockDetected:
        # Bad luck, which says nothing of what comes after the migration: the next round tries it again.
        pass
    except psycopg.Error as error:
        if connection.broken:
            raise
        if one.works:
            waits.refused.setdefault(one.what, error.diag.message_primary or str(error))
        one.useless = True
    else:
        one.works = True
        one.rows += done.rowcount if one.makes_rows else 0
    setattr(waits, slowest, max(getattr(waits, slowest), (time.monotonic() - begin) * 1000))
    waits.statements += 1


def _reads(connection: psycopg.Connection[Any]) -> list[_Work]:
    return [
        _Work(f"select from {table}", sql.SQL("select * from {} limit 20").format(sql.Identifier(table)))
        for table, _ in connection.execute(_TABLES).fetchall()
    ]


def _writes(connection: psycopg.Connection[Any]) -> list[_Work]:
    tables: dict[int, list[tuple[Any, ...]]] = {}
    for row in connection.execute(_COLUMNS).fetchall():
        tables.setdefault(row[0], []).append(row)
    inserts = [made for rows in tables.values() if (made := _insert(connection, rows))]
    touch = "update {t} set {c} = {c} where ctid = any(array(select ctid from {t} limit 1))"
    updates = [
        _Work(
            f"update {table}",
            sql.SQL(touch).format(t=sql.Identifier(table), c=sql.Identifier(column)),
        )
        for table, column in connection.execute(_TABLES).fetchall()
        if column
    ]
    return inserts + updates


def _insert(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> _Work | None:
    """A row with a value for each column that must have one; None where nothing is known to fit."""
    table = rows[0][1]
    parents = {row[5] for row in rows if row[5]}
    values: dict[str, sql.Composable] = {}
    for _, _, column, kind, is_array, parent, target in rows:
        if parent:
            values[column] = sql.SQL("p.{}").format(sql.Identifier(target))
        elif is_array:
            values.setdefault(column, sql.SQL("'{}'"))
        elif kind in _VALUES:
            values.setdefault(column, sql.SQL(_VALUES[kind]))
        else:
            return None
    if len(parents) > 1:
        return None
    source: sql.Composable = sql.SQL("")
    if parents:
        (name,) = connection.execute("select relname from pg_class where oid = %s", [parents.pop()]).fetchone() or ("",)
        source = sql.SQL(" from (select * from {} limit 1) as p").format(sql.Identifier(name))
    statement = sql.SQL("insert into {} ({}) select {}").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(values.values()),
    )
    return _Work(f"insert into {table}", statement + source, makes_rows=True)
