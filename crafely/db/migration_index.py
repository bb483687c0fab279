"""``create index concurrently`` and ``drop index concurrently`` after an earlier run that did not come to its end.

They run outside a transaction, so a crash can leave an index that is invalid, or one that is made (or gone) and not
recorded. What can be put right without a doubt is; for the rest, who migrates is told what to do.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from crafely.db.migration_files import MigrationError, statements

_CREATE = re.compile(r"create\s+(?:unique\s+)?index\s+concurrently\s+(?P<name>[\w.\"]+)\s+on\b", re.IGNORECASE)
_DROP = re.compile(r"drop\s+index\s+concurrently\s+(?P<name>[\w.\"]+)\s*$", re.IGNORECASE)

_STATE = """
    select i.indisvalid, n.nspname, c.relname, pg_get_indexdef(c.oid), p.pid
    from pg_class as c
    inner join pg_namespace as n on n.oid = c.relnamespace
    inner join pg_index as i on i.indexrelid = c.oid
    left join pg_stat_progress_create_index as p on p.index_relid = c.oid
    where c.oid = to_regclass(%s)
"""


class _Found(msgspec.Struct, frozen=True):
    """An index that is there: whether it is valid, what it is, and the server process that is building it."""

    valid: bool
    schema: str
    name: str
    definition: str
    builder: int | None


def prepare(connection: psycopg.Connection[Any], file: str, text: str, on_progress: Callable[[str], None]) -> bool:
    """Makes way for a file's statement; False when what it is to do is done already.

    Raises MigrationError where an index of that name is there and nobody can know whether it is the right one.
    """
    line, statement = statements(text)[0]
    if match := _CREATE.match(statement):
        found = _look(connection, match["name"])
        if found and found.builder:
            raise MigrationError(f"{file}:{line}: server process {found.builder} is building {found.name}: wait for it")
        if found and found.valid:
            raise MigrationError(
                f"{file}:{line}: {found.name} is there already, and valid, but not recorded: a run was ended between"
                f" the two, or somebody made it by hand ({found.definition}); drop index concurrently {found.name}, and"
                " run this again"
            )
        if found:
            on_progress(f"dropping the invalid index {found.name}, which a run that was broken off left")
            drop = sql.SQL("drop index concurrently {}").format(sql.Identifier(found.schema, found.name))
            connection.execute(drop)
    elif (match := _DROP.match(statement)) and not _look(connection, match["name"]):
        on_progress(f"{match['name']} is gone already: an earlier run dropped it and could not record it")
        return False
    return True


def advice(connection: psycopg.Connection[Any], text: str) -> str:
    """What to do after a statement outside a transaction has failed."""
    _, statement = statements(text)[0]
    match = _CREATE.match(statement)
    try:
        found = _look(connection, match["name"]) if match else None
    except psycopg.Error:
        # The connection was what failed.
        found = None
    if found and not found.valid:
        return f"; it left {found.name} invalid: mend the cause and run this again, which drops it and builds it anew"
    if match or _DROP.match(statement):
        return "; nothing is recorded, it is safe to run again"
    return "; it runs outside a transaction: see what it left behind before you run it again"


def _look(connection: psycopg.Connection[Any], name: str) -> _Found | None:
    row = connection.execute(_STATE, [name]).fetchone()
    return _Found(*row) if row else None
