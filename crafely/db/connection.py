"""A connection to PostgreSQL: psycopg's, with a pipeline that is over when it is over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, AsyncPipeline
from psycopg.abc import PQGen
from psycopg.generators import send


class _Pipeline(AsyncPipeline):
    """psycopg's pipeline, which sends all that it has to send, and nothing after its Sync.

    psycopg (3.3.9) ends a pipeline with a Flush after the Sync, which has nothing to flush: a system call here and the
    server woken once more. A transaction pooler that has the server's answer by then takes the Flush for the beginning
    of the next transaction, and keeps a connection of the server for a client that wants none. But with it psycopg
    sends what is left of a statement larger than the socket's buffer; its ``sync`` does not, and waits for ever.
    """

    def _exit_gen(self) -> PQGen[None]:
        return self._sync_gen()

    def _sync_gen(self) -> PQGen[None]:
        try:
            self._enqueue_sync()
            yield from self._communicate_gen()
        finally:
            if self.result_queue:
                yield from send(self.pgconn)
            yield from self._fetch_gen(flush=False)


class Connection(AsyncConnection[tuple[Any, ...]]):
    """Makes rows as tuples. See psycopg's AsyncConnection."""

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[AsyncPipeline]:
        """Switches to pipeline mode in the block, and gives the pipeline. Within another one it is that."""
        if self._pipeline is None:
            # psycopg takes the one that is there, and forgets it when it ends.
            self._pipeline = _Pipeline(self)
        async with super().pipeline() as pipeline:
            yield pipeline
