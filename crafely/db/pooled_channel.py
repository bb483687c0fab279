"""A channel behind a transaction pooler: how the transaction begins goes with each statement, in one round trip."""

from collections.abc import Awaitable, Callable, Sequence

from psycopg import pq

from crafely.db.begin import NOBODY, PooledBegin
from crafely.db.channel import Channel, Observer
from crafely.db.connection import Connection
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

    def _is_end(self, result: pq.abc.PGresult | None) -> bool:
        # Each statement's results end with None, and all of them with this. Lost, there is nothing but None to come.
        return (
            self._pgconn.status == pq.ConnStatus.BAD if result is None else result.status == pq.ExecStatus.PIPELINE_SYNC
        )
