"""One transaction of several statements, and what runs a statement on a connection."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncPipeline, AsyncRawCursor

from crafely.db.channel import Observer, Patience
from crafely.db.connection import Connection
from crafely.db.query import Result, Statement, check_role


class Transaction:
    """Runs statements on one connection, in one transaction. Made by ``Session.transaction``.

    ``after_commit`` is called, in order, when it has been committed.
    """

    def __init__(
        self, connection: Connection, pipeline: AsyncPipeline, patience: Patience, role: str, observe: Observer
    ) -> None:
        self._connection = connection
        self._patience = patience
        self._pipeline = pipeline
        self._role = role
        self._observe = observe
        # Whether a statement has failed: then nothing of the transaction can stay.
        self.failed = False
        self.after_commit: list[Callable[[], None]] = []

    async def execute(self, statement: Statement, values: Sequence[Any]) -> Result:
        """Runs a statement; nothing of it stays unless the whole transaction commits."""
        return await self.execute_as(self._role, statement, values)

    async def execute_as(self, role: str, statement: Statement, values: Sequence[Any]) -> Result:
        """Runs a statement as a role, in the same round trip; those around it run as before."""
        check_role(statement, role)
        self._patience.renew()
        try:
            with Watch(statement.name, self._observe):
                cursor = cursor_of(self._connection, statement)
                if role != self._role:
                    await _become(self._connection, role)
                await cursor.execute(statement.text, values, prepare=True)
                if role != self._role:
                    await _become(self._connection, self._role)
                await self._pipeline.sync()
                return await result_of(cursor, statement)
        except BaseException:
            self.failed = True
            raise


class Part:
    """What serves as a session within a transaction that is open: everything happens together with the rest of it."""

    def __init__(self, transaction: Transaction, role: str) -> None:
        self._transaction = transaction
        self._role = role

    async def execute(self, statement: Statement, values: Sequence[Any]) -> Result:
        """Runs a statement as the role."""
        return await self._transaction.execute_as(self._role, statement, values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Part"]:
        """Itself: it ends with the whole."""
        yield self


def cursor_of(connection: Connection, statement: Statement) -> AsyncRawCursor[Any]:
    """A cursor that makes the rows of a statement, from binary."""
    cursor = AsyncRawCursor(connection, row_factory=lambda _: statement.make_row)
    cursor.format = psycopg.pq.Format.BINARY
    return cursor


async def _become(connection: Connection, role: str) -> None:
    # Not «set local role», which Citus would tell its workers: there each role has a connection of its own, that can
    # become no other.
    await AsyncRawCursor(connection).execute(b"select set_config('role', $1, true)", [role], prepare=True)


async def result_of(cursor: AsyncRawCursor[Any], statement: Statement) -> Result:
    """What a cursor has got for a statement."""
    if statement.row_type is not None:
        rows = await cursor.fetchall()
        return Result(rows, len(rows))
    return Result([], cursor.rowcount)


class Watch:
    """Tells the observer how long the body took and whether it raised."""

    __slots__ = ("_begin", "_name", "_observe")

    def __init__(self, name: str, observe: Observer) -> None:
        self._name = name
        self._observe = observe

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        self._observe(self._name, time.perf_counter() - self._begin, kind is not None)
