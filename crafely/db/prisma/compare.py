"""Whether what was taken is what the source holds: rows and checksums over all columns, made on both sides."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

from crafely.db import prisma
from crafely.db.backup import Progress
from crafely.db.backup.restore import rest, wake
from crafely.db.prisma import THERE, PrismaError, Sum, Table, plain
from crafely.keyring import Keyring, UnreadableError


@contextmanager
def resting(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction in which triggers rest and the owner sees every row."""
    with connection.transaction():
        triggers, forced = rest(connection)
        yield
        wake(connection, triggers, forced)


def refused_ids(connection: psycopg.Connection[Any], table: Table) -> list[str]:
    """The ids of a table's rows that cannot be taken."""
    found = connection.execute("select distinct id from crafely_import.refused where table_name = %s", [table.source])
    return [id_ for (id_,) in found.fetchall()]


def compare(
    connection: psycopg.Connection[Any],
    source: psycopg.Connection[Any],
    ring: Keyring,
    sealed: Mapping[str, Sequence[str]],
    on_progress: Progress,
) -> dict[str, Sum]:
    """Gives the rows and checksum of every table, by name. Raises PrismaError where the source has others by now."""
    sums = {}
    wrong = []
    # The source is asked anew: of what was written to it since, nobody would know otherwise.
    with source.transaction(), ThreadPoolExecutor(1, thread_name_prefix="source") as other:
        for table in prisma.tables():
            on_progress(f"comparing {table.name}", 0, 0)
            columns = prisma.columns_of(connection, table.text("taken"))
            ids = refused_ids(connection, table)
            asked = other.submit(_sum_there, source, table, columns, ids)
            with resting(connection):
                here = prisma.total(connection, table.text("taken"), columns)
            with plain(THERE):
                there = asked.result()
            if here == there and table.has("texts"):
                here, there = _sum_texts(connection, source, table, sealed[table.name], ring, set(ids), here)
            if here != there:
                wrong.append(f"{table.source} ({here.rows} rows here, {there.rows} in the source)")
            sums[table.name] = here
    if wrong:
        raise PrismaError(
            f"not the same on both sides: {', '.join(wrong)}. The source was changed since this import began: empty "
            "the database (crafely migrate reset) and begin again, with the application stopped"
        )
    return sums


def _sum_there(source: psycopg.Connection[Any], table: Table, columns: Sequence[str], ids: Sequence[str]) -> Sum:
    whole = prisma.total(source, table.text("read"), columns)
    for begin in range(0, len(ids), prisma.IDS):
        whole = whole.without(prisma.total(source, table.text("read"), columns, ids[begin : begin + prisma.IDS]))
    return whole


def _sum_texts(
    connection: psycopg.Connection[Any],
    source: psycopg.Connection[Any],
    table: Table,
    own: Sequence[str],
    ring: Keyring,
    refused: set[str],
    others: Sum,
) -> tuple[Sum, Sum]:
    """The sums of what was stored and of the source: the texts, each opened, besides the other columns."""
    columns = prisma.columns_of(connection, table.text("texts"))
    plain_names = [column.removesuffix("_json") for column in columns]
    here, there = [0, others.sum], [0, others.sum]
    with resting(connection), connection.cursor(name="texts") as cursor:
        cursor.execute(table.text("texts").encode())
        for row in cursor:
            texts = dict(zip(columns, row, strict=True))
            id_ = texts.pop("id")
            try:
                texts |= {
                    name: ring.open(texts[name], table.name, name, id_) for name in own if texts[name] is not None
                }
            except UnreadableError as error:
                raise PrismaError(str(error)) from None
            here = [here[0] + 1, here[1] + prisma.digest(id_, texts)]
    with plain(THERE):
        for chunk in prisma.read(source, table, plain_names, after=None, as_texts=True):
            for row in chunk.rows:
                texts = dict(zip(columns, row, strict=True))
                id_ = texts.pop("id")
                if id_ not in refused:
                    there = [there[0] + 1, there[1] + prisma.digest(id_, texts)]
    return Sum(*here), Sum(*there)
