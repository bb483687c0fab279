"""A PostgreSQL whose usage is spread over servers by Citus (``sql/scale/citus.sql``): CRAFELY_ENGINE=citus.

The rows of usage are on workers, where row-level security asks the same setting for the user. What ``set_config`` sets
stays on the coordinator; a worker is told only of ``set local``, in a transaction that has begun with ``begin``, while
citus.propagate_set_commands is 'local'
(https://docs.citusdata.com/en/stable/develop/api_guc.html). So each transaction for somebody says all three, together
with its statement, in one round trip as ever. On a PostgreSQL without Citus that setting is one that nobody reads, and
everything works just the same.

What has no identity (the coalescers' channels, what housekeeping does) runs as ever: its roles see the rows of all.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg
from psycopg import AsyncRawCursor
from psycopg.sql import SQL, Literal

from crafely.db.begin import NOBODY, Begin, Identity, PooledBegin
from crafely.db.connection import Connection
from crafely.db.query import Result, Statement
from crafely.db.session import Database, Session
from crafely.db.transaction import cursor_of, result_of

# «set local» takes no parameters. Literal refuses a zero byte, and quotes whatever else comes so that it is read as it
# was, also by a worker whose standard_conforming_strings is off.
_SET_LOCAL = SQL("set local crafely.user_id = {}")


class CitusBegin(Begin):
    """How transactions of a role begin: as ever, and then so that the workers hear of the user."""

    more: ClassVar[dict[str, str]] = {"citus.propagate_set_commands": "local"}

    async def send(self, connection: Connection, identity: Identity) -> None:
        """Sends what a transaction begins with after «begin», in a pipeline: no round trip of its own."""
        await super().send(connection, identity)
        if identity is not NOBODY:
            # Each user's is another text, so it is not prepared.
            await AsyncRawCursor(connection).execute(_SET_LOCAL.format(Literal(identity.user_id)), prepare=False)


class PooledCitusBegin(CitusBegin, PooledBegin):
    """The same behind a transaction pooler."""


class CitusSession(Session):
    """Runs each statement for somebody in a transaction that begins with «begin»."""

    async def _once(self, connection: Connection, statement: Statement, values: Sequence[Any]) -> Result:
        if self._identity is NOBODY:
            return await super()._once(connection, statement, values)
        cursor, control = cursor_of(connection, statement), AsyncRawCursor(connection)
        try:
            async with connection.pipeline():
                await control.execute(b"begin")
                await self._begin.send(connection, self._identity)
                await cursor.execute(statement.text, values, prepare=True)
                await control.execute(b"commit")
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName):
            # It is tried once more, which takes a connection that is in no transaction.
            await connection.rollback()
            raise
        return await result_of(cursor, statement)


class CitusDatabase(Database):
    """The pools of one process. Takes what Database takes."""

    kind = CitusSession

    def _begin(self, role: str) -> Begin:
        return (CitusBegin if self._pooler is None else PooledCitusBegin)(role, self._statement_timeout)


# What CRAFELY_ENGINE says, and what the pools then are.
ENGINES: dict[str, type[Database]] = {"postgresql": Database, "citus": CitusDatabase}
