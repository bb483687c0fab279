"""An import: the rows of a source taken chunk by chunk, each in one transaction with the note of how far it came.

Works as the login that migrates, which owns the tables, as a restored backup does: triggers rest while a chunk is
taken (nothing is audited row by row or stamped), foreign keys and checks hold, and whoever kills it finds the database
as the last chunk left it. What it keeps for itself is the schema crafely_import (begin.sql), which goes with the last
step. Until then nobody should serve the database.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import msgspec
import psycopg
from psycopg import sql as names

from crafely.db import prisma
from crafely.db.backup import Progress, connect
from crafely.db.backup.restore import make_month
from crafely.db.prisma import HERE, THERE, Chunk, PrismaError, Sum, Table, plain, question
from crafely.db.prisma.compare import compare, refused_ids, resting
from crafely.keyring import Keyring

# More differences than these say no more.
_SHOWN = 20
_LOCK = "select pg_try_advisory_lock(hashtextextended('crafely.import', 0))"


class Refused(msgspec.Struct, frozen=True):
    """How many rows of a table cannot be taken because of one rule. Table and column are the source's."""

    table: str
    column: str
    rule: str
    rows: int


class Imported(msgspec.Struct, frozen=True):
    """What became of a table. ``checksum`` is that of both sides (prisma.Sum); None: it was not compared yet."""

    table: str
    source: str
    read: int
    taken: int
    refused: int
    checksum: str | None


class Report(msgspec.Struct, frozen=True):
    """What an import did. ``unusable`` are keys that were taken and cannot be presented, ``seconds`` this run's.

    ``left_columns`` are the source's that are unknown here.
    """

    is_complete: bool
    is_resumed: bool
    is_dry_run: bool
    tables: list[Imported]
    refused: list[Refused]
    left_columns: list[str]
    unusable: int
    seconds: float


class Line(msgspec.Struct, frozen=True):
    """One line of the report: a row that cannot be taken, or (``taken``) is of no use as it is. Never its values."""

    table: str
    id: str
    column: str
    rule: str
    taken: bool


def load(
    url: str,
    source: psycopg.Connection[Any],
    *,
    ring: Keyring,
    sealed: Mapping[str, Sequence[str]],
    leave_behind: bool = False,
    dry_run: bool = False,
    on_line: Callable[[Line], object] = lambda _: None,
    on_progress: Progress = lambda *_: None,
) -> Report:
    """Fills the migrated database at ``url`` with what the source holds, or goes on where another import was ended.

    ``sealed`` are the columns, by table, whose texts are stored with the ring. Unless ``leave_behind``, rows that
    cannot be taken leave the import incomplete: mended in the source they are taken by the next one. A dry run does it
    all and takes it back. Raises PrismaError, DatabaseUnavailableError.
    """
    begin = time.monotonic()
    with connect(url) as connection, plain(HERE), ExitStack() as stack:
        if connection.execute(_LOCK).fetchone() != (True,):
            raise PrismaError("another import is at work in this database")
        if dry_run:
            stack.enter_context(connection.transaction(force_rollback=True))
        left = _require_models(source, leave_behind=leave_behind)
        is_resumed = _begin(connection, source)
        _copy(connection, source, ring, sealed, on_progress)
        refused = _refused(connection)
        unusable = _tell(connection, on_line)
        is_complete = not refused or leave_behind
        sums = {}
        if is_complete:
            sums = compare(connection, source, ring, sealed, on_progress)
        tables = _tables(connection, sums)
        if is_complete:
            on_progress("summing up days", 0, 0)
            _finish(connection, tables)
    return Report(is_complete, is_resumed, dry_run, tables, refused, left, unusable, time.monotonic() - begin)


def _require_models(source: psycopg.Connection[Any], *, leave_behind: bool) -> list[str]:
    """Gives the columns that stay behind. Raises PrismaError where the source is not as the models are."""
    with plain(THERE):
        found = prisma.differences(source)
    if wrong := [str(one) for one in found if not (one.is_more and leave_behind)]:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise PrismaError(f"the source is not as the models are: {'; '.join(wrong[:_SHOWN])}{more}")
    return [f"{one.table_name}.{one.column_name}" for one in found]


def _begin(connection: psycopg.Connection[Any], source: psycopg.Connection[Any]) -> bool:
    """Makes the place for what an import keeps. Gives whether there was one: then it is the same source's."""
    with plain(THERE):
        identity = prisma.identity(source)
    if connection.execute("select to_regnamespace('crafely_import')").fetchone() != (None,):
        begun = connection.execute(
            "select source, destination = 'public.usage'::regclass from crafely_import.run"
        ).fetchone()
        if begun == (identity, True):
            return True
        if begun and begun[1]:
            raise PrismaError(
                "an import of another source was begun in this database: empty it (crafely migrate reset)"
            )
        # Of a database that was emptied since.
        connection.execute("drop schema crafely_import cascade")
    with resting(connection):
        if held := [name for (name,) in connection.execute(question("holding")).fetchall()]:
            raise PrismaError(f"the database holds rows already (in {', '.join(held)}): import into a new one")
        connection.execute(question("begin"))
        connection.execute(
            "insert into crafely_import.run (source, destination) values (%s, 'public.usage'::regclass)", [identity]
        )
    return False


def _copy(
    connection: psycopg.Connection[Any],
    source: psycopg.Connection[Any],
    ring: Keyring,
    sealed: Mapping[str, Sequence[str]],
    on_progress: Progress,
) -> None:
    """Takes what is left of every table, all of one moment of the source."""
    with source.transaction():
        with plain(THERE):
            # A row that comes out of its turn would be missed by an import that goes on.
            prisma.in_order(source)
            counts = {table: prisma.count(source, table) for table in prisma.tables()}
        total, done = sum(counts.values()), 0
        for table in prisma.tables():
            place, read, is_complete = _progress(connection, source, table)
            columns = prisma.columns_of(connection, f"table crafely_import.{table.name}")
            own = sealed.get(table.name, ())
            on_progress(table.name, done + read, max(total, done + read))
            if is_complete:
                work = _again(source, table, columns, refused_ids(connection, table), as_texts=bool(own))
            else:
                work = _onward(source, table, columns, place, as_texts=bool(own))
            # Whatever happens, nothing is being read when the source's transaction ends.
            with closing(work), closing(_ahead(_sealed(work, table, columns, own, ring))) as ahead:
                for chunk, ids in ahead:
                    _take(connection, table, columns, chunk, ids)
                    read += len(chunk.rows) - len(ids)
                    on_progress(table.name, done + read, max(total, done + read))
            if not is_complete:
                connection.execute(
                    "update crafely_import.progress set is_complete = true where table_name = %s", [table.name]
                )
                # Rows of the next tables are looked up in this one.
                connection.execute(names.SQL("analyze {}").format(names.Identifier(table.name)))
            done += counts[table]


def _progress(
    connection: psycopg.Connection[Any], source: psycopg.Connection[Any], table: Table
) -> tuple[str | None, int, bool]:
    """Where the last row of a table that was looked at stands, how many were, and whether all were."""
    with plain(THERE):
        filenode = prisma.filenode(source, table)
    connection.execute(
        "insert into crafely_import.progress (table_name, filenode) values (%s, %s) on conflict do nothing",
        [table.name, filenode],
    )
    row = connection.execute(
        "select filenode, place::text, rows_read, is_complete from crafely_import.progress where table_name = %s",
        [table.name],
    ).fetchone()
    if row is None or (row[0] != filenode and not row[3]):
        raise PrismaError(f"{table.source} was written anew since this import began: empty the database, begin again")
    return row[1], row[2], row[3]


# Rows, and the ids of those that were refused before and are looked at again.
_Work = tuple[Chunk, list[str]]


def _onward(
    source: psycopg.Connection[Any], table: Table, columns: Sequence[str], place: str | None, *, as_texts: bool
) -> Generator[_Work, None, None]:
    """The rows behind a place."""
    with closing(prisma.read(source, table, columns, after=place, as_texts=as_texts)) as chunks:
        for chunk in chunks:
            yield chunk, []


def _again(
    source: psycopg.Connection[Any], table: Table, columns: Sequence[str], ids: Sequence[str], *, as_texts: bool
) -> Generator[_Work, None, None]:
    """The rows that could not be taken, as they are now."""
    for begin in range(0, len(ids), prisma.IDS):
        some = list(ids[begin : begin + prisma.IDS])
        rows = [
            row for chunk in prisma.read_again(source, table, columns, some, as_texts=as_texts) for row in chunk.rows
        ]
        yield Chunk(rows, ""), some


def _sealed(
    work: Iterator[_Work], table: Table, columns: Sequence[str], own: Sequence[str], ring: Keyring
) -> Iterator[_Work]:
    """The rows with their texts as they are stored."""
    for chunk, ids in work:
        if not own:
            yield chunk, ids
            continue
        rows = []
        for row in chunk.rows:
            texts = dict(zip(columns, row, strict=True))
            texts |= ring.seal_columns(table.name, texts["id"], {name: texts[name] for name in own})
            rows.append(tuple(texts.values()))
        yield Chunk(rows, chunk.place), ids


def _ahead(work: Iterator[_Work]) -> Generator[_Work, None, None]:
    """The same, while the next one is read."""
    with ThreadPoolExecutor(1, thread_name_prefix="source") as reader:
        waiting = reader.submit(next, work, None)
        while True:
            with plain(THERE):
                found = waiting.result()
            if found is None:
                return
            waiting = reader.submit(next, work, None)
            yield found


def _take(
    connection: psycopg.Connection[Any], table: Table, columns: Sequence[str], chunk: Chunk, ids: Sequence[str]
) -> None:
    """Takes rows, notes those that cannot be taken and where the last one stands: all of it or, killed, nothing."""
    waiting = names.Identifier("crafely_import", table.name)
    with connection.transaction():
        connection.execute(names.SQL("truncate {}").format(waiting))
        among = names.SQL(", ").join(names.Identifier(column) for column in columns)
        into = names.SQL("copy {} ({}) from stdin").format(waiting, among)
        with connection.cursor() as cursor, cursor.copy(into) as copy:
            if chunk.rows and isinstance(chunk.rows[0], bytes):
                copy.write(b"".join(chunk.rows))
            else:
                for row in chunk.rows:
                    copy.write_row(row)
        # Before triggers rest: a new month gets those of its table, as they are then.
        if table.has("months"):
            for (name,) in connection.execute(table.text("months").encode()).fetchall():
                make_month(connection, name)
        with resting(connection):
            connection.execute(
                "delete from crafely_import.refused where table_name = %s and id = any(%s)", [table.source, list(ids)]
            )
            refused = connection.execute(table.text("refuse").encode()).rowcount
            try:
                taken = connection.execute(table.text("load").encode()).rowcount
            except psycopg.errors.UniqueViolation:
                raise PrismaError(
                    f"a row of {table.source} came twice: the source was changed since this import began. Empty the "
                    "database (crafely migrate reset) and begin again, with the application stopped"
                ) from None
            left = _left(connection, table, waiting) if refused else 0
            if taken + left != len(chunk.rows):
                raise PrismaError(f"{table.source}: {len(chunk.rows)} rows were read, {taken} taken, {left} refused")
        # Of rows that were refused before some may be gone from the source since.
        connection.execute(
            "update crafely_import.progress"
            " set place = coalesce(nullif(%s, '')::tid, place), rows_read = rows_read + %s where table_name = %s",
            [chunk.place, len(chunk.rows) - len(ids), table.name],
        )


def _left(connection: psycopg.Connection[Any], table: Table, waiting: names.Identifier) -> int:
    row = connection.execute(
        names.SQL(
            "select count(*) from {} as s where exists"
            " (select from crafely_import.refused as r where r.table_name = {} and r.id = s.id)"
        ).format(waiting, names.Literal(table.source))
    ).fetchone()
    return int(row[0]) if row else 0


def _refused(connection: psycopg.Connection[Any]) -> list[Refused]:
    found = connection.execute(
        "select table_name, column_name, rule, count(*) from crafely_import.refused group by 1, 2, 3 order by 1, 2, 3"
    )
    return [Refused(*row) for row in found.fetchall()]


def _tell(connection: psycopg.Connection[Any], on_line: Callable[[Line], object]) -> int:
    """Tells of every row that cannot be taken, then of keys that are of no use. Gives how many of these there are."""
    with connection.transaction(), connection.cursor(name="refused") as cursor:
        cursor.itersize = prisma.IDS
        cursor.execute("select table_name, id, column_name, rule from crafely_import.refused order by 1, 2, 3, 4")
        for source, id_, column, rule in cursor:
            on_line(Line(source, id_, column, rule, taken=False))
    unusable = Counter[str]()
    for table in prisma.tables():
        if not table.has("kept"):
            continue
        # The cursor ends before they wake: a table that is being read is altered by nobody.
        with resting(connection), connection.cursor(name="kept") as cursor:
            cursor.itersize = prisma.IDS
            cursor.execute(table.text("kept").encode())
            last = None
            for id_, column, rule in cursor:
                unusable[table.name] += id_ != last
                last = id_
                on_line(Line(table.source, id_, column, rule, taken=True))
    return unusable.total()


def _tables(connection: psycopg.Connection[Any], sums: Mapping[str, Sum]) -> list[Imported]:
    rows = dict(connection.execute("select table_name, rows_read from crafely_import.progress").fetchall())
    found = []
    for table in prisma.tables():
        refused = len(refused_ids(connection, table))
        total = sums.get(table.name)
        found.append(
            Imported(
                table=table.name,
                source=table.source,
                read=rows[table.name],
                taken=rows[table.name] - refused,
                refused=refused,
                checksum=total.checksum if total else None,
            )
        )
    return found


def _finish(connection: psycopg.Connection[Any], tables: Sequence[Imported]) -> None:
    """The daily sums, a line of the trail for each table, and nothing left of the import: at once."""
    with resting(connection):
        connection.execute(question("daily"))
        lines = psycopg.RawCursor(connection)
        for table in tables:
            lines.execute(question("audit"), [table.table, table.taken, table.checksum])
        connection.execute("drop schema crafely_import cascade")
    # So that plans are good at once.
    connection.execute(names.SQL("analyze {}").format(names.SQL(", ").join(names.Identifier(t.table) for t in tables)))
    connection.execute("analyze usage_daily")
