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


def beside(url: str, name: str) -> str:
    """The URL of another database on the same server, for the same login."""
    parts: dict[str, Any] = {**conninfo_to_dict(url), "dbname": name}
    return make_conninfo(**parts)


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
        yield beside(server, name)
    finally:
        _administer(server, sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


def _administer(server: str, statement: sql.Composed) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement)
