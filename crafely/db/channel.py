"""One connection of its own, for a statement that runs thousands of times a second.

psycopg's cursors serve every need, and that costs: about twice what the server takes to find a row by its key. A
channel uses libpq as psycopg offers it (``pgconn``): prepare once, send, and let the event loop call when the answer is
there. What is sent is the same as in session.py, and so are values, rows and errors.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import abc, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result

from crafely.db.connection import Connection
from crafely.db.query import Result, Statement, check_role

# Told about every statement: its name, its seconds, and whether it failed.
Observer = Callable[[str, float, bool], None]

SILENT = "the server does not answer"

# Seconds within which an answer is worth being waited for awake.
_QUICK = 0.0005


class Patience:
    """Gives up a server, or a network, that says nothing at all while psycopg waits in the block: a context manager.

    Takes the connection and how many seconds it may take. Who waits then gets an OperationalError, and the connection
    is lost. A cancellation would not do: psycopg answers it by asking the same silent server to cancel the statement.
    """

    __slots__ = ("_connection", "_seconds", "_silent", "_timer")

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._silent = False

    def __enter__(self) -> "Patience":
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._shut)
        return self

    def renew(self) -> None:
        """Begins anew: another statement is sent."""
        self._timer.cancel()
        self.__enter__()

    def _shut(self) -> None:
        self._silent = True
        # By another descriptor of the same socket: libpq, and the event loop, find it at its end.
        with (
            suppress(psycopg.OperationalError, OSError),
            socket.socket(fileno=os.dup(self._connection.pgconn.socket)) as same,
        ):
            same.shutdown(socket.SHUT_RDWR)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._timer.cancel()
        if self._silent and isinstance(error, psycopg.OperationalError):
            raise psycopg.OperationalError(SILENT) from None


class Channel:
    """Runs statements one after another on a dedicated connection: an Executor. Made by ``Database.channel``.

    It has no identity: its role reads and writes for any user. Lost, it connects again at the next statement.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], role: str, seconds: float, observe: Observer
    ) -> None:
        """Takes what connects, the role it connects as, and the seconds after which a silent server is given up."""
        self._connect = connect
        self.role = role
        self._seconds = seconds
        self._observe = observe
        self._connection: Connection | None = None
        self._transformer: abc.Transformer
        self._prepared: dict[str, bytes] = {}
        # What libpq says only while the connection is there; the event loop must be told after that, too.
        self._socket = -1
        self._answer: asyncio.Future[pq.abc.PGresult] | None = None
        self._results: list[pq.abc.PGresult] = []
        # When the statement was sent that waits for its answer.
        self._begun = 0.0
        self._watching: asyncio.TimerHandle
        # Whether the last answer came quickly, as the next one probably will.
        self._quick = False

    @property
    def lost(self) -> bool:
        """Whether the connection has been lost, or was never made."""
        return self._connection is None

    async def open(self) -> None:
        """Connects, unless connected. Raises what connecting raises."""
        if self._connection is not None:
            return
        connection = await self._connect()
        # A result is taken off the wire in one piece and never waited for in a call.
        connection.pgconn.nonblocking = 1
        self._transformer = Transformer.from_context(connection)
        self._prepared = {}
        self._connection = connection
        self._socket = connection.pgconn.socket
        asyncio.get_running_loop().add_reader(self._socket, self._readable)
        self._watch()

    async def close(self) -> None:
        """Gives the connection back to the server; who waits for an answer is told that it is gone."""
        self._lose(psycopg.OperationalError("the connection was closed"))

    async def execute(self, statement: Statement, values: Sequence[Any]) -> Result:
        """Runs a statement, in one round trip and a transaction of its own.

        Raises psycopg's errors. After an OperationalError that lost the connection nobody knows whether the statement
        has happened; ``lost`` says so.
        """
        check_role(statement, self.role)
        begin, failed = time.perf_counter(), True
        try:
            await self.open()
            result = await self._execute(statement, values)
            failed = False
        except psycopg.errors.ReadOnlySqlTransaction as error:
            # Its server is no primary any more: another connection may lead to who is.
            self._lose(error)
            raise
        finally:
            self._observe(statement.name, time.perf_counter() - begin, failed)
        return result

    async def _execute(self, statement: Statement, values: Sequence[Any]) -> Result:
        parameters = self._transformer.dump_sequence(values, _AUTO[: len(values)])
        try:
            result = await self._run(statement, parameters)
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName):
            # "cached plan must not change result type": a migration ran under us. The statement had no effect; under
            # a new name it is prepared anew, and the old one goes with the connection.
            self._prepared.pop(statement.name, None)
            result = await self._run(statement, parameters)
        if statement.row_type is None:
            return Result([], result.command_tuples or 0)
        self._transformer.set_pgresult(result, set_loaders=True, format=pq.Format.BINARY)
        rows = self._transformer.load_rows(0, result.ntuples, statement.make_row)
        return Result(rows, len(rows))

    async def _run(self, statement: Statement, parameters: Sequence[Any]) -> pq.abc.PGresult:
        name = self._prepared.get(statement.name)
        if name is None:
            name = b"s%d_%d" % (len(self._prepared), time.monotonic_ns())
            self._pgconn.send_prepare(name, statement.text)
            await self._round_trip()
            self._prepared[statement.name] = name
        self._pgconn.send_query_prepared(name, parameters, None, pq.Format.BINARY)
        return await self._round_trip()

    @property
    def _pgconn(self) -> pq.abc.PGconn:
        if self._connection is None:
            raise psycopg.OperationalError("the connection was lost")
        return self._connection.pgconn

    async def _round_trip(self) -> pq.abc.PGresult:
        """Sends what waits to be sent, and gives the answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[pq.abc.PGresult] = loop.create_future()
        self._answer, self._results = answer, []
        self._begun = time.monotonic()
        if self._quick:
            loop.call_soon(self._spin)
        try:
            if self._pgconn.flush():
                await self._flush(answer)
            result = await answer
        finally:
            self._answer = None
            if not answer.done() or answer.cancelled():
                # Somebody gave up waiting: what arrives now would be taken for the next statement's answer.
                self._lose(psycopg.OperationalError("the connection was closed"))
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise error_from_result(result)
        return result

    def _spin(self) -> None:
        """Keeps the event loop from falling asleep over an answer that comes in a moment.

        Falling asleep and being woken cost a virtual processor about 50 µs, twice what the server takes to find a key.
        Whoever else wants the processor gets it, and of a server that takes longer nobody waits awake.
        """
        if self._answer is not None and not self._answer.done() and time.monotonic() - self._begun < _QUICK:
            os.sched_yield()
            asyncio.get_running_loop().call_soon(self._spin)

    def _watch(self) -> None:
        """Gives up a server, or a network, that says nothing at all; the server's own time limit is shorter.

        One timer for all statements: to make and to cancel one costs a twentieth of a lookup.
        """
        if self._answer is not None and time.monotonic() - self._begun > self._seconds:
            self._lose(psycopg.OperationalError(SILENT))
        if self._connection is not None:
            self._watching = asyncio.get_running_loop().call_later(self._seconds / 10, self._watch)

    async def _flush(self, answer: "asyncio.Future[pq.abc.PGresult]") -> None:
        """Sends the rest of a statement that is larger than the socket's buffer."""
        loop = asyncio.get_running_loop()
        while not answer.done() and self._pgconn.flush():
            writable = loop.create_future()
            loop.add_writer(self._socket, _wake, writable)
            try:
                await asyncio.wait({writable, answer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                # Lost, it is removed already, and the number may be another's by now.
                if self._connection is not None:
                    loop.remove_writer(self._socket)

    def _readable(self) -> None:
        """Called by the event loop: the server has sent something, or has gone."""
        assert self._connection is not None  # noqa: S101 - while there is a reader there is a connection
        pgconn, answer, results = self._connection.pgconn, self._answer, self._results
        try:
            pgconn.consume_input()
            # Asked before each of them: libpq would hold up the loop for one that has not arrived.
            while not pgconn.is_busy():
                if answer is None or answer.done():
                    return
                result = pgconn.get_result()
                if self._is_end(result):
                    break
                results += [result] if result is not None else []
            else:
                return
            if pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError("the connection was lost")  # noqa: TRY301 - as consume_input would
        except psycopg.OperationalError as error:
            # The last words of a server that stops, such as 57P01, say more.
            failed = _failed(results)
            self._lose(error_from_result(failed) if failed is not None else error)
        else:
            self._quick = time.monotonic() - self._begun < _QUICK
            # An error at the commit comes after the rows.
            answer.set_result(_failed(results) or results[-1])

    def _is_end(self, result: pq.abc.PGresult | None) -> bool:
        """Whether a statement's answer ends with this."""
        return result is None

    def _lose(self, error: psycopg.Error) -> None:
        """Drops the connection; a statement that waits for its answer fails."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            # Also where libpq has closed the socket: the loop would not hear the next one of the same number.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._watching.cancel()
            connection.pgconn.finish()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _failed(results: Sequence[pq.abc.PGresult]) -> pq.abc.PGresult | None:
    return next((result for result in results if result.status == pq.ExecStatus.FATAL_ERROR), None)


_AUTO = [PyFormat.AUTO] * 32


def _wake(writable: "asyncio.Future[None]") -> None:
    if not writable.done():
        writable.set_result(None)
