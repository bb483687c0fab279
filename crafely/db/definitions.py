"""What the indexes of a database are, in the words that would make them."""

from typing import Any

import psycopg

_INDEXES = """
    select c.relname, pg_get_indexdef(c.oid)
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('i', 'I')
        and not c.relispartition
        and n.nspname = 'public'
"""


def indexes(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """The ``create index`` of each index, by its name; those of partitions go with the table's."""
    made = connection.execute(_INDEXES).fetchall()
    # Everything is in public, and nobody would write it.
    return {name: definition.replace(" ONLY ", " ").replace(" public.", " ") for name, definition in made}
