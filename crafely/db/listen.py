"""Hearing what the database tells: LISTEN, on a connection of its own."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import psycopg

from crafely.db.channel import Connection

log = logging.getLogger(__name__)

# Seconds of silence after which the server is asked whether it is still there, and how long it may take to say so.
HEARTBEAT = 5.0
ANSWER = 5.0
# Seconds before a connection that could not be made is tried again: at first, and at most.
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Listener:
    """Calls a function for every notification of a channel, and says when it may have missed some.

    ``up`` is called when it has begun to listen, ``down`` as soon as it has stopped: what is told between ``down`` and
    the next ``up`` is not heard, and never told again.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        channel: str,
        *,
        heard: Callable[[str], None],
        up: Callable[[], None],
        down: Callable[[], None],
    ) -> None:
        """Takes what connects, the channel's name, and whom to call: ``heard`` gets the payload."""
        self._connect = connect
        self._channel = channel
        self._heard = heard
        self._up = up
        self._down = down
        self._task: asyncio.Task[None] | None = None
        # How often the connection was lost, for the metrics.
        self.losses = 0

    async def open(self) -> None:
        """Starts to listen, and returns when it does. Raises what connecting raises."""
        connection = await self._listen()
        self._task = asyncio.create_task(self._run(connection))

    async def close(self) -> None:
        """Stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> Connection:
        connection = await self._connect()
        try:
            # An identifier cannot be a parameter; this one is the program's own.
            await connection.execute(f'listen "{self._channel}"'.encode())
        except BaseException:
            await connection.close()
            raise
        self._up()
        return connection

    async def _run(self, connection: Connection) -> None:
        while True:
            try:
                await self._hear(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.warning("%s is not heard: %s", self._channel, str(error).strip() or type(error).__name__)
            finally:
                self._down()
                # Not close(): a server that says nothing would not answer that either.
                connection.pgconn.finish()
            self.losses += 1
            connection = await self._again()

    async def _hear(self, connection: Connection) -> None:
        """Hears until the connection is lost."""
        while True:
            async for notification in connection.notifies(timeout=HEARTBEAT):
                self._heard(notification.payload)
            # A network that has swallowed the connection would be silent for ever.
            async with asyncio.timeout(ANSWER):
                await connection.execute(b"select")

    async def _again(self) -> Connection:
        pause = _PAUSE
        while True:
            with contextlib.suppress(psycopg.Error, OSError):
                connection = await self._listen()
                log.info("%s is heard again", self._channel)
                return connection
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
