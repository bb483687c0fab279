"""Databases that are made for a question and dropped with its answer."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_numbers = itertools.count(1)


@contextmanager
def database(server: str) -> Iterator[str]:
    """The URL of an empty database on a server, which is dropped at the end.

    ``server`` is the URL of a login that may create databases: never one that anybody's data is on. Raises
    psycopg.Error.
    """
    name = f"crafely_scratch_{os.getpid()}_{next(_numbers)}"
    # Files are copied, not logged: the drop then has nothing to write out first.
    _administer(server, sql.SQL("create database {} strategy file_copy").format(sql.Identifier(name)))
    try:
        parts: dict[str, Any] = {**conninfo_to_dict(server), "dbname": name}
        yield make_conninfo(**parts)
    finally:
        _administer(server, sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _administer(server: str, statement: sql.Composed) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)
