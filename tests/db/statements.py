"""Statements of a test's own, run as the store runs its files."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crafely.db.header import Header
from crafely.db.query import Executor, Statement
from crafely.db.session import Database

Rows = list[tuple[Any, ...]]


def statement(text: str, role: str = "crafely_app") -> Statement:
    """A statement whose rows come as tuples."""
    return Statement(
        name="tests/some",
        path=Path("sql/tests/some.sql"),
        header=Header(description="Something.", returns="many object", roles=(role,)),
        text=text.encode(),
        parameters=(),
        parameter_types=(),
        cardinality="many",
        row_type=object,
        make_row=tuple,
    )


async def run(db: Executor, text: str, *values: object) -> Rows:
    """Runs a text that gives rows."""
    return (await db.execute(statement(text), values)).rows


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Database]:
    """Pools that are open; of one connection, for users, unless the options say more."""
    options = {"size": 1, "pool_timeout": 5, "statement_timeout": 10, "roles": ["crafely_app"], **options}
    database = Database(url, **options)
    try:
        await database.open()
        yield database
    finally:
        await database.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another process does; gives up after ten seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("never happened")
