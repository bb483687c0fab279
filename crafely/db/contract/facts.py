"""What the catalogue of a database says, read once for all statements."""

from collections.abc import Mapping
from typing import Any

import msgspec
import psycopg

# From so many rows on a table is one that grows: one that is small for good, such as the list of migrations, may be
# read from end to end. The filling (filled.py) has far more for every table that grows.
GROWS = 1000


class Table(msgspec.Struct, frozen=True):
    """A table, or whatever else can be selected from."""

    name: str
    schema: str
    # r a table, p a partitioned one, v a view …
    kind: str
    # By number, which is what a parse tree has: the name, and whether it can never be null.
    columns: Mapping[int, tuple[str, bool]]
    # Rows, as the planner believes; of a partitioned table, of all partitions.
    rows: float
    is_partition: bool
    has_row_security: bool

    @property
    def is_ours(self) -> bool:
        """Whether it is a table of a migration: no view, no partition, and not yoyo's."""
        return self.kind in {"r", "p"} and not self.is_partition and not self.name.startswith("_yoyo_")


class Index(msgspec.Struct, frozen=True):
    """An index that is whole and ready; of a partitioned table, the parent of those of the partitions."""

    name: str
    table: int
    # Whether no two rows may have the same keys, now and not only at the commit, whatever other columns hold.
    is_unique: bool
    # The numbers of its columns; 0 for an expression.
    keys: tuple[int, ...]


class Function(msgspec.Struct, frozen=True):
    """A function, an aggregate or the function of an operator."""

    name: str
    schema: str
    returns_set: bool
    # Whether it may give another value at each call.
    is_volatile: bool


class Facts(msgspec.Struct, frozen=True):
    """Tables, functions and operators by their oid, indexes and types by name."""

    tables: Mapping[int, Table]
    indexes: Mapping[str, Index]
    functions: Mapping[int, Function]
    operators: Mapping[int, str]
    # The name of each type, as in pg_type; arrays with [] behind.
    types: Mapping[int, str]
    # What ``plans.partition_roots`` gives.
    roots: Mapping[str, str]

    def growing(self) -> set[str]:
        """The names of our tables that grow."""
        return {t.name for t in self.tables.values() if t.schema == "public" and t.rows >= GROWS and not t.is_partition}


_TABLES = """
    select c.oid, c.relname, n.nspname, c.relkind::text, c.reltuples, c.relispartition, c.relrowsecurity,
        array_agg(a.attnum order by a.attnum), array_agg(a.attname::text order by a.attnum),
        array_agg(a.attnotnull order by a.attnum)
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relkind in ('r', 'p', 'v', 'm', 'f')
        and n.nspname <> 'information_schema'
    group by c.oid, n.nspname
"""
_INDEXES = """
    select c.relname, i.indrelid, i.indisunique and i.indimmediate and i.indpred is null, i.indkey::int2[],
        i.indnkeyatts
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    where i.indisvalid
        and not c.relispartition
"""
_FUNCTIONS = """
    select p.oid, p.proname, n.nspname, p.proretset, p.provolatile = 'v'
    from pg_proc p
    join pg_namespace n on n.oid = p.pronamespace
"""
# Only the server's own can be known by their name.
_OPERATORS = "select oid, oprname from pg_operator where oprnamespace = 'pg_catalog'::regnamespace"
_TYPES = """
    select t.oid, case when e.oid is null then t.typname else e.typname || '[]' end
    from pg_type t
    left join pg_type e on e.oid = t.typelem and t.typcategory = 'A'
"""
_ROOTS = """
    select c.relname, r.relname
    from pg_class c
    join pg_class r on r.oid = pg_partition_root(c.oid)
    where c.relispartition
"""


def read(connection: psycopg.Connection[Any]) -> Facts:
    """Reads them. Raises psycopg.Error."""

    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query.encode()).fetchall()

    return Facts(
        tables={
            oid: Table(name, schema, kind, dict(zip(numbers, zip(names, nots, strict=True), strict=True)), *rest)
            for oid, name, schema, kind, *rest, numbers, names, nots in rows(_TABLES)
        },
        indexes={
            name: Index(name, table, is_unique, tuple(keys[:count]))
            for name, table, is_unique, keys, count in rows(_INDEXES)
        },
        functions={oid: Function(*rest) for oid, *rest in rows(_FUNCTIONS)},
        operators=dict(rows(_OPERATORS)),
        types=dict(rows(_TYPES)),
        roots=dict(rows(_ROOTS)),
    )
