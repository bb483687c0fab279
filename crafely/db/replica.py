"""Reading from a standby what was written to the primary, and never less than a client has been told of.

A statement whose header says ``reads: replica`` runs on the standby once that has replayed the primary's log up to
where it was when the statement was asked for. Whatever anybody had been told of by then is in that log, so a client
reads what it has just written, or what somebody has told it of, whichever worker answers and without sending anything
back. The primary is asked for its position by one statement for all who wait at that moment (coalesce.py), which
touches no table. The standby is waited for some milliseconds, then the primary answers; also when the standby is away,
is no standby, or is further behind than it may be. Nothing is asked of it then, until it is well again.

What is replayed is what later snapshots see: the server moves that position when a record has been applied
(https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL). It is asked for in the same
round trip and transaction as the statement, before it: so it holds on whichever of several standbys.

Keys are looked up on the primary all the same. One that was revoked must be refused as soon as its NOTIFY has been
heard, and a standby that has not replayed the revocation would bring it back: a lookup there, too, would have to ask
the primary for its position first. That is a shared statement as the lookup is one, and costs the primary as much with
eight callers (12 µs for each), 4 µs less of 5 with 64, and each of them a second round trip.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncRawCursor

from crafely.db.channel import Observer, Patience
from crafely.db.connection import Connection
from crafely.db.hosts import reasons
from crafely.db.query import Result, Statement
from crafely.db.session import Database, DatabaseUnavailableError, Identity, Session
from crafely.db.transaction import cursor_of, result_of

log = logging.getLogger(__name__)

# What it has replayed, in bytes from the log's beginning; -1 where it replays nothing.
_REPLAYED = (
    b"select case when pg_is_in_recovery() then coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), -1)"
    b" else -1 end::bigint"
)
_SYSTEM = b"select system_identifier from pg_control_system()"
# Seconds for which a statement waits for the log to be replayed: about what two more round trips to a busy server take.
WAIT = 0.02
# Seconds between two looks at the standby; until it is looked at again when it is left alone; and for an answer.
_INTERVAL, _PAUSE, _ANSWER = 0.25, 1.0, 2.0
# Seconds that a statement waits for a connection to the standby. The primary has some, too.
_POOL_SECONDS = 1.0
# Positions that are remembered, with their times, of a standby that is behind.
_SAMPLES = 1000


class _BehindError(Exception):
    """The log was not replayed in time."""


class Replica:
    """A standby, or several behind one URL: what ``Database.standby`` is set to. One for each process."""

    def __init__(  # what one process needs to know of its standby, nothing more
        self,
        url: str,
        primary: Database,
        *,
        position: Callable[[], Awaitable[int]],
        lag: float,
        size: int,
        statement_timeout: float,
        observe: Observer,
    ) -> None:
        """Takes a libpq URL, the database that is followed, what asks that for the position of its log, the seconds
        that the standby may be behind, and what Database takes. Opens nothing yet.

        Raises DatabaseUnavailableError for a URL that libpq does not understand.
        """
        self._primary = primary
        self._position = position
        self._lag_limit = lag
        self._database = _Standby(
            url,
            size=size,
            pool_timeout=_POOL_SECONDS,
            statement_timeout=statement_timeout,
            roles=("crafely_app", "crafely_admin"),
            observe=observe,
        )
        self.pools = self._database.pools
        self._connection: Connection | None = None
        self._opened = False
        self._watching: asyncio.Task[None] | None = None
        # Done when it is left alone: who waits for its answer then waits no more.
        self._left: asyncio.Future[None]
        # Why it is left alone; empty while it is used.
        self.reason = "it was not looked at yet"
        # How far behind it was when it was last looked at, in seconds.
        self.lag = 0.0
        # Positions of the primary that it has not replayed, and when they were known. It is as far behind as the first
        # of them is old: true of a primary that writes nothing, too.
        self._missing: list[tuple[float, int]] = []
        # What it was last seen to have replayed, and what somebody has waited for in vain.
        self.replayed = -1
        self._awaited = -1
        # How many statements it has answered, and how many were left to the primary, for the metrics.
        self.answered = 0
        self.passed = 0

    async def open(self) -> None:
        """Looks at the standby and goes on doing so. One that is away costs nobody more than that look."""
        self._left = asyncio.get_running_loop().create_future()
        await self._look_safely()
        self._watching = asyncio.create_task(self._watch(), name="replica")

    async def close(self) -> None:
        """Gives back every connection."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._drop()
        await self._database.close()

    async def execute(
        self, role: str, identity: Identity, statement: Statement, values: Sequence[Any]
    ) -> Result | None:
        """Runs a statement as a role for an identity, as Session.execute does.

        None where the primary is to answer: whatever is the matter with the standby, nobody is told of it. What runs
        into its time limit raises psycopg.errors.QueryCanceled: it would have taken as long there.
        """
        result = None
        if not self.reason and self.replayed >= self._awaited and role in self.pools:
            result = await self._execute(role, identity, statement, values)
        if result is None:
            self.passed += 1
        else:
            self.answered += 1
        return result

    async def _execute(
        self, role: str, identity: Identity, statement: Statement, values: Sequence[Any]
    ) -> Result | None:
        try:
            position = await self._position()
        except Exception:
            # Of the primary, which says itself what is the matter with it.
            return None
        session = self._database.session_at(self, position, role, identity)
        # A task, so that a server that says nothing is not waited for once the watch knows.
        work = asyncio.create_task(session.execute(statement, values))
        work.add_done_callback(_look_at)
        try:
            waited: set[asyncio.Future[Any]] = {work, self._left}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else None
        except _BehindError:
            # Nobody else waits for it until the watch has seen that it is there.
            self._awaited = max(self._awaited, position)
            return None
        except psycopg.errors.QueryCanceled:
            raise
        except psycopg.Error:
            # It stops, or its replay was in the way (40001); an error of the statement's own will come again.
            return None
        finally:
            work.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_PAUSE if self.reason else _INTERVAL)
            await self._look_safely()

    async def _look_safely(self) -> None:
        try:
            await self._look()
        except Exception as error:
            await self._drop()
            self._leave(reasons(error))

    async def _look(self) -> None:
        """Compares the standby with the primary. Raises what speaks against using it."""
        try:
            position = await self._position()
        except Exception:
            # Without the primary nothing can be said of the standby.
            return
        now = time.monotonic()
        if self._connection is None:
            self._connection = await self._connect()
        with Patience(self._connection, _ANSWER):
            self.replayed = await replayed(self._connection)
        if self.replayed < 0:
            raise DatabaseUnavailableError("it is no standby")
        if self.replayed > position and self.replayed > await self._position():
            # Of a primary that was lost with the end of its log, for example.
            raise DatabaseUnavailableError("it has what the primary has not")
        self.lag = self._behind(position, now)
        if self.lag > self._lag_limit:
            # Of several standbys the next connection may find another.
            raise DatabaseUnavailableError(f"it is {self.lag:.1f} s behind")
        if not self._opened:
            for pool in self.pools.values():
                await pool.open()
            self._opened = True
        if self.reason:
            self.reason = ""
            log.info("the standby is used")

    def _behind(self, position: int, now: float) -> float:
        """For how many seconds the primary has had what the standby has not replayed."""
        if max(self._awaited, *(missing for _, missing in self._missing), -1) > position:
            # Another primary: nobody will ever write that.
            self._missing, self._awaited = [], -1
        while self._missing and self._missing[0][1] <= self.replayed:
            del self._missing[0]
        if position > self.replayed and (not self._missing or self._missing[-1][1] < position):
            self._missing.append((now, position))
            if len(self._missing) > _SAMPLES:
                # The first one counts; the longer it is missing, the less the others need be told apart.
                del self._missing[1::2]
        return now - self._missing[0][0] if self._missing else 0.0

    async def _connect(self) -> Connection:
        connection = await self._database.connect("crafely_app")
        try:
            with Patience(connection, _ANSWER):
                system = await _value(connection, _SYSTEM)
            async with await self._primary.connect("crafely_auth") as primary:
                with Patience(primary, _ANSWER):
                    followed = await _value(primary, _SYSTEM)
            if system != followed:
                raise DatabaseUnavailableError("it is a copy of another server")  # noqa: TRY301 - closed as after others
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection

    async def _drop(self) -> None:
        if self._connection is not None:
            # Not close(): a server that says nothing would not answer that either.
            connection, self._connection = self._connection, None
            connection.pgconn.finish()

    def _leave(self, reason: str) -> None:
        if not self.reason:
            log.warning("the standby is left alone: %s", reason)
        self.reason = reason
        if not self._left.done():
            self._left.set_result(None)
        self._left = asyncio.get_running_loop().create_future()


class _Session(Session):
    """One statement on a standby, not before it has replayed the log up to a position. Raises _BehindError."""

    def __init__(self, replica: Replica, position: int, *session: Any) -> None:
        super().__init__(*session)
        self._replica = replica
        self._position = position

    async def _once(self, connection: Connection, statement: Statement, values: Sequence[Any]) -> Result:
        if self._replica.replayed < self._position:
            await self._wait(connection)
        cursor, seen = cursor_of(connection, statement), AsyncRawCursor(connection)
        async with connection.pipeline():
            await self._begin.send(connection, self._identity)
            await seen.execute(_REPLAYED, prepare=True)
            await cursor.execute(statement.text, values, prepare=True)
        self._check(await _first(seen))
        return await result_of(cursor, statement)

    async def _wait(self, connection: Connection) -> None:
        end, pause = time.monotonic() + WAIT, 0.001
        while (now := await replayed(connection)) < self._position:
            if time.monotonic() > end:
                raise _BehindError
            await asyncio.sleep(pause)
            pause *= 2
        self._check(now)

    def _check(self, now: int) -> None:
        if now < self._position:
            raise _BehindError
        self._replica.replayed = max(self._replica.replayed, now)


class _Standby(Database):
    """The pools on a standby."""

    def session_at(self, replica: Replica, position: int, role: str, identity: Identity) -> Session:
        """A session that sees the log up to a position, or nothing."""
        seconds = self._statement_timeout + _ANSWER
        return _Session(replica, position, self.pools[role], role, self._begins[role], identity, seconds, self._observe)


async def replayed(connection: Connection) -> int:
    """What a standby has replayed of the log, in bytes; -1 if it is none. Raises psycopg.Error."""
    return int(await _value(connection, _REPLAYED))


async def _value(connection: Connection, query: bytes) -> Any:
    cursor = AsyncRawCursor(connection)
    await cursor.execute(query, prepare=True)
    return await _first(cursor)


async def _first(cursor: AsyncRawCursor[Any]) -> Any:
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - neither statement has a table
    return row[0]


def _look_at(task: "asyncio.Task[Result]") -> None:
    """Nobody may have waited for its end, of which asyncio would complain."""
    with suppress(asyncio.CancelledError):
        task.exception()
