"""A channel behind a transaction pooler: how the transaction begins goes with each statement, in one round trip."""

from collections.abc import Awaitable, Callable, Sequence

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from crafely.db.begin import NOBODY, PooledBegin
from crafely.db.channel import Channel, Connection, Observer
from crafely.db.query import Statement


class PooledChannel(Channel):
    """Runs statements one after another: what a Channel does, by libpq's pipeline mode and without preparing.

    The connection is to the pooler, and a server's connection is another client's as soon as the statement is done.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], begin: PooledBegin, seconds: float, observe: Observer
    ) -> None:
        """Takes what Channel takes, and how its transactions begin in place of the role."""
        super().__init__(connect, begin.settings["role"], seconds, observe)
        self._begin = begin.statement
        self._values = [value.encode() for value in begin.values(NOBODY)]

    async def open(self) -> None:
        """Connects, unless connected. Raises what connecting raises."""
        if self.lost:
            await super().open()
            self._pgconn.enter_pipeline_mode()

    async def _run(self, statement: Statement, parameters: Sequence[pq.abc.Buffer | None]) -> pq.abc.PGresult:
        pgconn = self._pgconn
        pgconn.send_query_params(self._begin, self._values)
        pgconn.send_query_params(statement.text, parameters, result_format=pq.Format.BINARY)
        pgconn.pipeline_sync()
        return await self._round_trip()

    def _readable(self) -> None:
        """Called by the event loop: the pooler has sent something, or has gone."""
        assert self._connection is not None  # noqa: S101 - while there is a reader there is a connection
        pgconn, answer, results = self._connection.pgconn, self._answer, self._results
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                if answer is None or answer.done():
                    return
                result = pgconn.get_result()
                if pgconn.status == pq.ConnStatus.BAD:
                    results += [result] if result is not None else []
                    raise psycopg.OperationalError("the connection was lost")  # noqa: TRY301 - as consume_input would
                # Each statement's results end with None, and all of them with this.
                if result is not None and result.status == pq.ExecStatus.PIPELINE_SYNC:
                    break
                results += [result] if result is not None else []
            else:
                return
        except psycopg.OperationalError as error:
            failed = _failed(results)
            self._lose(error_from_result(failed) if failed is not None else error)
        else:
            # What has failed is followed by what therefore was not tried; an error at the commit comes after the rows.
            answer.set_result(_failed(results) or results[-1])


def _failed(results: Sequence[pq.abc.PGresult]) -> pq.abc.PGresult | None:
    return next((result for result in results if result.status == pq.ExecStatus.FATAL_ERROR), None)
