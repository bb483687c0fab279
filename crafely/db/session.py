"""Pools, roles, identity and transactions.

A session runs each statement for one user in one round trip: psycopg's pipeline mode sends «set_config(…)» and the
statement together, without BEGIN. PostgreSQL treats what stands before the sync as one implicit transaction
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING), so the identity is local to it:
it works behind a transaction pooler and cannot leak to the next user of the connection.
"""

import re
import select
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import psycopg
from psycopg import AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn, Ping
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from crafely.db.adapters import ADAPTERS
from crafely.db.begin import NOBODY, Begin, Identity, PooledBegin
from crafely.db.channel import SILENT, Channel, Observer, Patience
from crafely.db.connection import Connection
from crafely.db.hosts import Hosts, reasons
from crafely.db.pooled_channel import PooledChannel
from crafely.db.query import Result, Statement, WrongRoleError, check_role
from crafely.db.tls import secured
from crafely.db.transaction import Transaction, Watch, cursor_of, result_of

__all__ = [
    "CONNECT_SECONDS",
    "NOBODY",
    "Database",
    "DatabaseUnavailableError",
    "Identity",
    "Session",
    "Standby",
    "accepts",
    "connect",
    "unavailable",
]

# How long the server may take to answer a new connection.
CONNECT_SECONDS = 5
# Seconds beyond the time limit of a statement after which a server that says nothing is given up.
_SILENCE = 2.0
# For how long a pool tries again to make a connection, at longer and longer intervals, until somebody asks for one.
_RECONNECT = 2.0
# A connection that is refused has no SQLSTATE in libpq, only its text.
_PASSES = re.compile(
    f"too many (clients|connections)|connection slots|timeout expired|{SILENT}|initialization incomplete"
    # PgBouncer's own, and what is left of them where a pipeline waits for its answers.
    "|no more connections allowed|server_login_retry|query_wait_timeout|client_login_timeout"
    "|server closed the connection unexpectedly"
    # Of several servers none writes: a standby is about to be promoted.
    "|in hot standby mode|session is read-only"
)
# What tells whether two URLs lead to the same database.
_WHICH = (
    b"select pg_postmaster_start_time()::text, (select oid from pg_database where datname = current_database())::text"
)
# Statements that are prepared on one connection; far more than there are files.
_PREPARED_MAX = 1000


class DatabaseUnavailableError(ConnectionError):
    """The database cannot be reached, or refuses us: one line that says why, without the password."""

    @property
    def passes(self) -> bool:
        """Whether it is known to pass by itself: others use all connections, nothing is heard, or none is primary."""
        return _PASSES.search(str(self)) is not None


class Standby(Protocol):
    """What may answer in the place of the server that is written to: see replica.py."""

    async def execute(
        self, role: str, identity: Identity, statement: Statement, values: Sequence[Any]
    ) -> Result | None:
        """Runs a statement that may be answered so. None: it is to be run as ever."""


class Session:
    """Runs each statement in a transaction of its own, as one role, for one identity. Made by ``Database.session``."""

    def __init__(  # what Database.session knows
        self,
        pool: AsyncConnectionPool[Connection],
        role: str,
        begin: Begin,
        identity: Identity,
        seconds: float,
        observe: Observer,
        standby: Standby | None = None,
    ) -> None:
        self._pool = pool
        self._begin = begin
        self._seconds = seconds
        self._role = role
        self._identity = identity
        self._observe = observe
        self._standby = standby

    async def execute(self, statement: Statement, values: Sequence[Any]) -> Result:
        """Runs a statement in one round trip. A plan that a migration made stale is made anew, once."""
        check_role(statement, self._role)
        if self._standby is not None and statement.header.replica:
            result = await self._standby.execute(self._role, self._identity, statement, values)
            if result is not None:
                return result
        with Watch(statement.name, self._observe):
            async with _connection(self._pool, self._seconds) as (connection, patience):
                try:
                    return await self._once(connection, statement, values)
                except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName):
                    # "cached plan must not change result type", or a pooler gave us another server connection. The
                    # statement had no effect; psycopg forgets its prepared statements when it sees this command.
                    patience.renew()
                    await connection.execute("deallocate all")
                    return await self._once(connection, statement, values)

    async def _once(self, connection: Connection, statement: Statement, values: Sequence[Any]) -> Result:
        cursor = cursor_of(connection, statement)
        if self._identity is NOBODY and not self._begin.always:
            await cursor.execute(statement.text, values, prepare=True)
            return await result_of(cursor, statement)
        async with connection.pipeline():
            await self._begin.send(connection, self._identity)
            await cursor.execute(statement.text, values, prepare=True)
        return await result_of(cursor, statement)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Several statements that happen together or not at all.

        BEGIN and the identity travel with the first statement: n statements take n + 1 round trips.
        """
        async with (
            _connection(self._pool, self._seconds) as (connection, patience),
            connection.pipeline() as pipeline,
        ):
            # psycopg's own transaction() would wait for the server once at the beginning and twice more at the end.
            control = AsyncRawCursor(connection)
            await control.execute(b"begin")
            if self._identity is not NOBODY or self._begin.always:
                await self._begin.send(connection, self._identity)
            transaction = Transaction(connection, pipeline, patience, self._role, self._observe)
            yield transaction
            if transaction.failed:
                # COMMIT would roll back and say nothing. (The connection's own status may be behind: it changes only
                # when the pipeline's end is read.)
                raise psycopg.errors.InFailedSqlTransaction("a statement failed, and its error was swallowed")
            patience.renew()
            await control.execute(b"commit")
            # After an error the connection rolls back on its way to the pool. A ROLLBACK within the pipeline would not
            # do: psycopg then deallocates its statements only after it has prepared the next one.
        for work in transaction.after_commit:
            work()


class Database:
    """The pools of one process: one for each role that it uses, so that no connection can do more than its role."""

    # What its sessions are (citus.py has others).
    kind = Session

    def __init__(  # what one process needs to know of its database, nothing more
        self,
        url: str,
        *,
        size: int,
        pool_timeout: float,
        statement_timeout: float,
        roles: Sequence[str] = ("crafely_app", "crafely_auth", "crafely_meter", "crafely_admin"),
        observe: Observer = lambda *_: None,
        pooler: str | None = None,
    ) -> None:
        """Takes a libpq URL, the size of the pool that serves users, and two limits in seconds. Opens nothing yet.

        ``pooler``: the URL of a transaction pooler before the same database, for all but what needs a session.

        Raises DatabaseUnavailableError for a URL that libpq does not understand.
        """
        self._hosts, self._pooler = _understood(url), None if pooler is None else _understood(pooler)
        # How many seconds a caller waits for a connection, here or in a coalescer.
        self.pool_timeout = pool_timeout
        self._statement_timeout = statement_timeout
        self._observe = observe
        # What answers for it where it may (replica.py). None: nothing does.
        self.standby: Standby | None = None
        # Users' statements are most of the work; the other roles run few, short ones.
        self.pools = {role: self._pool(role, size if role == "crafely_app" else max(2, size // 4)) for role in roles}
        self._begins = {role: self._begin(role) for role in roles}

    def _pool(self, role: str, size: int) -> AsyncConnectionPool[Connection]:
        hosts = self._pooler or self._hosts

        async def configure(connection: Connection) -> None:
            connection.prepared_max = _PREPARED_MAX
            hosts.found(connection.pgconn)
            await _check_login(connection, self._begin(role))

        return AsyncConnectionPool(
            lambda: hosts.url,
            min_size=1,
            max_size=size,
            open=False,
            timeout=self.pool_timeout,
            max_waiting=size * 100,
            max_idle=300,
            reconnect_timeout=_RECONNECT,
            name=role,
            configure=configure,
            connection_class=Connection,
            kwargs=_options(hosts.url, self._begin(role)),
        )

    def _begin(self, role: str) -> Begin:
        """How its transactions begin."""
        return (Begin if self._pooler is None else PooledBegin)(role, self._statement_timeout)

    async def open(self) -> None:
        """Connects each pool once. Raises DatabaseUnavailableError or WrongRoleError with one line that says why."""
        hosts = self._pooler or self._hosts
        try:
            # What a pool would only log and try again, asked once by ourselves, so that it can be said.
            for begin in self._begins.values():
                async with await _dedicated(hosts, begin) as probe:
                    through = await (await probe.execute(_WHICH)).fetchone()
            if self._pooler is not None and self._begins:
                async with await self.connect(next(iter(self._begins))) as probe:
                    if through != await (await probe.execute(_WHICH)).fetchone():
                        raise psycopg.OperationalError("it leads to another database than CRAFELY_DATABASE_URL")
            for pool in self.pools.values():
                await pool.open(wait=True, timeout=self.pool_timeout * 2)
        except psycopg.Error as error:
            raise DatabaseUnavailableError(unavailable(hosts.url, error)) from None

    async def close(self) -> None:
        """Gives every connection back to the server."""
        for pool in self.pools.values():
            await pool.close()

    def session(self, role: str, identity: Identity = NOBODY) -> Session:
        """A session of one role for one identity: cheap, one for each request. Connections are taken a statement."""
        seconds = self._statement_timeout + _SILENCE
        return self.kind(self.pools[role], role, self._begins[role], identity, seconds, self._observe, self.standby)

    async def connect(self, role: str) -> Connection:
        """A connection to the server itself, of no pool, to be closed by whoever asked for it. Raises psycopg's errors.

        What needs a session has one here: behind a pooler, too.
        """
        return await _dedicated(self._hosts, Begin(role, self._statement_timeout))

    def channel(self, role: str) -> Channel:
        """A dedicated connection of a role that works for any user. Not connected yet."""
        seconds = self._statement_timeout + _SILENCE
        if (pooler := self._pooler) is not None:
            begin = PooledBegin(role, self._statement_timeout)
            return PooledChannel(lambda: _dedicated(pooler, begin), begin, seconds, self._observe)
        return Channel(lambda: self.connect(role), role, seconds, self._observe)


def accepts(url: str) -> bool:
    """Whether a server at this URL takes connections, whatever it has against ours. Waits for it, some seconds."""
    return PGconn.ping(make_conninfo(secured(url), connect_timeout=CONNECT_SECONDS).encode()) == Ping.OK


@contextmanager
def connect(
    url: str, *, application_name: str = "crafely", statement_timeout: float | None = None
) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection outside any pool that commits each statement, for tools: with the login's rights, and no adapters.

    Takes a URL, whose own parameters come first, and how many seconds a statement may run (half of that for a lock;
    None: as the server has it). Raises DatabaseUnavailableError.
    """
    try:
        given = conninfo_to_dict(url)
        options = str(given.get("options") or "")
        if statement_timeout is not None:
            milliseconds = int(statement_timeout * 1000)
            options += f" -c statement_timeout={milliseconds} -c lock_timeout={milliseconds // 2}"
        connection = psycopg.connect(
            secured(url),
            autocommit=True,
            application_name=given.get("application_name") or application_name,
            connect_timeout=given.get("connect_timeout") or CONNECT_SECONDS,
            options=f"{options} -c timezone=UTC",
        )
    except psycopg.Error as error:
        raise DatabaseUnavailableError(unavailable(url, error)) from None
    with connection:
        yield connection


def unavailable(url: str, error: psycopg.Error) -> str:
    """One line that says which database cannot be used and why; it holds no password."""
    try:
        where = conninfo_to_dict(url)
        place = f"{where.get('host') or 'the local socket'}, database {where.get('dbname') or 'of the same name'}"
    except psycopg.ProgrammingError:
        return "the database URL is not one that libpq understands: postgresql://user@host:port/database"
    return f"cannot use the database at {place}: {reasons(error)}"


@asynccontextmanager
async def _connection(
    pool: AsyncConnectionPool[Connection], seconds: float
) -> AsyncIterator[tuple[Connection, Patience]]:
    """A connection of the pool, and none that the server has closed while it was idle; lost after seconds of silence.

    So a restart of the server fails the statements that run, and none that come after. (The pool's own ``check`` would
    wait a second or more after each connection that fails it.)
    """
    connection = await pool.getconn()
    while _closed(connection):
        # The pool drops it and makes another.
        await pool.putconn(connection)
        connection = await pool.getconn()
    try:
        with Patience(connection, seconds) as patience:
            async with connection:
                yield connection, patience
    except psycopg.errors.ReadOnlySqlTransaction:
        # Its server is no primary any more, as behind a proxy that has stayed: another one may lead to who is.
        await connection.close()
        raise
    finally:
        await pool.putconn(connection)


def _closed(connection: Connection) -> bool:
    """Whether the server has closed an idle connection: then there is something to read. No round trip."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    try:
        while poll.poll(0):
            # A notice may be waiting, too; at the end of the stream this raises.
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


def _understood(url: str) -> Hosts:
    try:
        return Hosts(secured(url))
    except psycopg.ProgrammingError as error:
        raise DatabaseUnavailableError(unavailable(url, error)) from None


def _options(url: str, begin: Begin) -> dict[str, Any]:
    """How a connection is made whose transactions begin so."""
    given, name = conninfo_to_dict(url), begin.settings["role"].removeprefix("crafely_")
    return {
        "autocommit": True,
        "context": ADAPTERS,
        "application_name": given.get("application_name") or f"crafely {name}",
        "connect_timeout": given.get("connect_timeout") or CONNECT_SECONDS,
        **begin.connection(str(given.get("options") or "")),
    }


async def _dedicated(hosts: Hosts, begin: Begin) -> Connection:
    connection = await Connection.connect(hosts.url, **_options(hosts.url, begin))
    try:
        hosts.found(connection.pgconn)
        await _check_login(connection, begin)
    except BaseException:
        await connection.close()
        raise
    return connection


async def _check_login(connection: Connection, begin: Begin) -> None:
    with Patience(connection, CONNECT_SECONDS):
        async with connection.pipeline():
            if begin.always:
                await begin.send(connection, NOBODY)
            cursor = await connection.execute("select current_user")
        row = await cursor.fetchone()
    if row and row[0] != (role := begin.settings["role"]):
        # A pooler that drops the option would leave us with all the rights of the login.
        raise WrongRoleError(f"this connection runs as {row[0]}, not as {role}")
