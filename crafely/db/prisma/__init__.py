"""Moving in: an existing database of the Node application, as Prisma made it, copied into a migrated database.

A table is a folder ``<number>.<table of the source>.<table here>``, in the order in which they refer to each other:

    read.sql    the rows as they are in the source, in our columns; «place» is where they stand
    refuse.sql  what of the rows that wait in crafely_import cannot be taken, and why
    load.sql    takes all others
    taken.sql   what was taken, as the source would say it: to compare
    months.sql  the months that must be there before (usage alone)
    texts.sql   texts that can only be compared when they are opened (agents and threads)
    kept.sql    what was taken, and is of no use as it is (keys)

This module asks a source; load.py fills the destination.
"""

import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from decimal import Decimal
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql as names
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db.backup import connect

# The rows, and the bytes of them as COPY writes them, that are taken in one transaction: what is done again by an
# import that was killed. More would cost memory, and fewer a look at the keys of all users for each.
CHUNK_ROWS = 100_000
CHUNK_BYTES = 32 * 1024 * 1024
# Refused rows that are read again, or told of, at a time.
IDS = 10_000
# Which of the two databases refused something.
HERE, THERE = "the database", "the source"
# Numbers and times are the same text on both sides from here on.
_OLDEST = 120_000


class PrismaError(RuntimeError):
    """What stops an import: one line, without any row's values."""


class Table(msgspec.Struct, frozen=True):
    """A table that is copied: its folder, and what it is called in the source and here."""

    folder: Path
    source: str
    name: str

    def text(self, name: str) -> str:
        """The text of a file in its folder."""
        return (self.folder / f"{name}.sql").read_text(encoding="utf-8").strip().removesuffix(";")

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.folder / f"{name}.sql").exists()


class Sum(msgspec.Struct, frozen=True):
    """Rows, and the sum of the first 64 bits of each one's MD5, whatever their order. Not against an attacker."""

    rows: int
    sum: int

    @property
    def checksum(self) -> str:
        """The sum modulo 2^64, in hexadecimal."""
        return f"{self.sum % 2**64:016x}"

    def without(self, other: "Sum") -> "Sum":
        """What is left when others are taken away."""
        return Sum(self.rows - other.rows, self.sum - other.sum)


class Difference(msgspec.Struct, frozen=True):
    """What of a source is not as the models are (differences.sql)."""

    table_name: str
    column_name: str
    problem: str
    is_more: bool

    def __str__(self) -> str:
        return f"{self.table_name}.{self.column_name}: {self.problem}"


class Chunk(msgspec.Struct, frozen=True):
    """Some rows of a source, in their order, as COPY writes them or as texts; and where the last one stands."""

    rows: Sequence[Any]
    place: str


@cache
def tables() -> tuple[Table, ...]:
    """The tables, each after those that it refers to."""
    folders = sorted(path for path in Path(__file__).parent.iterdir() if re.match(r"\d\.", path.name))
    return tuple(Table(path, *path.name.split(".")[1:]) for path in folders)


@cache
def question(name: str) -> bytes:
    """The text of a file beside this one."""
    return (Path(__file__).parent / f"{name}.sql").read_bytes()


@contextmanager
def plain(where: str) -> Iterator[None]:
    """What a database refuses becomes one line. ``where`` is which of the two it is."""
    try:
        yield
    except psycopg.Error as error:
        # The server's detail is left out: it may hold a row's values.
        raise PrismaError(f"{where}: {error.diag.message_primary or ' '.join(str(error).split())}") from None


@contextmanager
def source(url: str, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a source, whose transactions read one moment and write nothing. Raises DatabaseUnavailableError.

    PrismaError where it is too old, or has no such schema.
    """
    named = {} if conninfo_to_dict(url).get("application_name") else {"application_name": "crafely import"}
    with connect(make_conninfo(url, **named)) as connection:
        if connection.info.server_version < _OLDEST:
            raise PrismaError(
                f"the source is PostgreSQL {connection.info.server_version // 10_000}: 12 or newer is needed"
            )
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        with plain(THERE):
            if connection.execute("select to_regnamespace(quote_ident(%s))", [schema]).fetchone() == (None,):
                raise PrismaError(f"the source has no schema {schema}: say it with --schema")
            connection.execute("select set_config('search_path', quote_ident(%s), false)", [schema])
        yield connection


def differences(connection: psycopg.Connection[Any]) -> list[Difference]:
    """Where a source is not as the models are."""
    return [Difference(*row) for row in connection.execute(question("differences"))]


def identity(connection: psycopg.Connection[Any]) -> str:
    """Which database a source is."""
    row = connection.execute(question("identity")).fetchone()
    return str(row[0]) if row else ""


def filenode(connection: psycopg.Connection[Any], table: Table) -> int:
    """The file of a source's table; another one when it was written anew, so that its rows are elsewhere."""
    row = connection.execute(
        "select pg_relation_filenode(to_regclass(format('%%I', %s::text)))", [table.source]
    ).fetchone()
    return int(row[0]) if row else 0


def count(connection: psycopg.Connection[Any], table: Table) -> int:
    """The rows of a source's table."""
    row = connection.execute(names.SQL("select count(*) from {}").format(names.Identifier(table.source))).fetchone()
    return int(row[0]) if row else 0


def in_order(connection: psycopg.Connection[Any]) -> None:
    """From here to the end of the transaction ``read`` gives rows in the order of their places: one process reads."""
    connection.execute("set local max_parallel_workers_per_gather = 0")


def read(
    connection: psycopg.Connection[Any], table: Table, columns: Iterable[str], *, after: str | None, as_texts: bool
) -> Generator[Chunk, None, None]:
    """A table's rows behind a place, in chunks: each row as the texts of its columns, or as COPY's line."""
    behind = names.SQL(" where t.place > {}::tid").format(names.Literal(after)) if after else names.SQL("")
    yield from _chunks(connection, _query(table, columns, behind), as_texts=as_texts)


def read_again(
    connection: psycopg.Connection[Any], table: Table, columns: Iterable[str], ids: Iterable[str], *, as_texts: bool
) -> Iterator[Chunk]:
    """The rows with these ids, as ``read`` gives them."""
    among = names.SQL(" where t.id = any({}::text[])").format(names.Literal(list(ids)))
    yield from _chunks(connection, _query(table, columns, among), as_texts=as_texts)


def _query(table: Table, columns: Iterable[str], where: names.Composable) -> names.Composed:
    among = names.SQL(", ").join(names.Identifier("t", column) for column in columns)
    return names.SQL("copy (select {} from ({}) as t{}) to stdout").format(
        among,
        names.SQL(table.text("read")),
        where,
    )


def _chunks(connection: psycopg.Connection[Any], query: names.Composed, *, as_texts: bool) -> Iterator[Chunk]:
    rows: list[Any] = []
    size = 0
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for row in copy.rows() if as_texts else copy:
            rows.append(row if as_texts else bytes(row))
            size += sum(map(len, filter(None, row))) if as_texts else len(row)
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield _chunk(rows)
                rows, size = [], 0
    if rows:
        yield _chunk(rows)


def _chunk(rows: list[Any]) -> Chunk:
    last = rows[-1]
    return Chunk(rows, str(last[0]) if isinstance(last, tuple) else bytes(last).split(b"\t", 1)[0].decode())


def total(
    connection: psycopg.Connection[Any], text: str, columns: Sequence[str], ids: Sequence[str] | None = None
) -> Sum:
    """The rows that a statement of ours gives, and their checksum over these columns; of these ids alone if given."""
    among = names.SQL(", ").join(names.Identifier("t", column) for column in columns)
    query = names.SQL(
        "select count(*), coalesce(sum(('x' || left(md5(row({})::text), 16))::bit(64)::bigint), 0) from ({}) as t{}"
    ).format(
        among,
        names.SQL(text),
        names.SQL("") if ids is None else names.SQL(" where t.id = any({}::text[])").format(names.Literal(list(ids))),
    )
    row = connection.execute(query).fetchone()
    return Sum(int(row[0]), int(row[1])) if row else Sum(0, 0)


def columns_of(connection: psycopg.Connection[Any], text: str) -> list[str]:
    """The columns that a statement of ours gives."""
    with closing(connection.execute(f"{text} limit 0".encode())) as cursor:
        return [column.name for column in cursor.description or ()]


def digest(id: str, texts: Mapping[str, str | None]) -> int:
    """A number for the texts of a row; of a column called …_json what it means, and not how it is written."""
    meant = {name: _meaning(text) if name.endswith("_json") else text for name, text in texts.items()}
    return int.from_bytes(blake2b(json.dumps([id, meant], sort_keys=True).encode(), digest_size=8).digest())


def _meaning(text: str | None) -> str | None:
    if text is None:
        return None
    # 1, 1.0 and 1e0 are one number to PostgreSQL.
    return json.dumps(json.loads(text, parse_float=Decimal, parse_int=Decimal), default=_number, sort_keys=True)


def _number(value: Decimal) -> str:
    return f"number {value.normalize()}"
