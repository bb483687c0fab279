"""Hearing what the database tells: LISTEN, on a connection of its own."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import psycopg

from crafely.db.channel import SILENT, Patience
from crafely.db.connection import Connection

log = logging.getLogger(__name__)

# Seconds after which the server is asked again whether it is still there, and how long it may take to say so.
HEARTBEAT = 5.0
ANSWER = 5.0
# Seconds before a connection that could not be made is tried again: at first, and at most.
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Listener:
    """Calls a function for every notification of a channel, and says when it may have missed some.

    ``up`` is called when it has begun to listen, ``down`` as soon as it has stopped: what is told between ``down`` and
    the next ``up`` is not heard, and never told again. All three are called by the event loop itself, in the moment in
    which the socket has something to read: a request that comes later finds what they have done.
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
        self._connection: Connection | None = None
        self._socket = -1
        # The server has said something since it was asked.
        self._spoke = asyncio.Event()
        # It has been asked whether it is there, and has not answered in full.
        self._asked = False
        # What has ended the connection.
        self._ended: asyncio.Future[Exception]
        self._task: asyncio.Task[None] | None = None
        # How often the connection was lost, for the metrics.
        self.losses = 0

    async def open(self) -> None:
        """Starts to listen, and returns when it does. Raises what connecting raises."""
        await self._listen()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lose(psycopg.OperationalError("closed"))

    async def _listen(self) -> None:
        connection = await self._connect()
        try:
            # Something may be told before the answer to LISTEN has been read.
            connection.add_notify_handler(lambda told: self._heard(told.payload))
            with Patience(connection, ANSWER):
                # An identifier cannot be a parameter; this one is the program's own.
                await connection.execute(f'listen "{self._channel}"'.encode())
        except BaseException:
            await connection.close()
            raise
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._connection, self._socket = connection, connection.pgconn.socket
        self._asked = False
        loop.add_reader(self._socket, self._readable)
        self._up()

    async def _run(self) -> None:
        while True:
            error = await self._watch()
            self.losses += 1
            log.warning("%s is not heard: %s", self._channel, str(error).strip())
            await self._again()

    async def _watch(self) -> Exception:
        """Waits until the connection is lost, and sees to it that this is noticed."""
        while True:
            await asyncio.wait({self._ended}, timeout=HEARTBEAT)
            if self._connection is None:
                return self._ended.result()
            # A network that has swallowed the connection would be silent for ever.
            self._spoke.clear()
            try:
                # Something else may have been said before the last answer was complete.
                if not self._asked:
                    self._connection.pgconn.send_query(b"select")
                    self._asked = True
                async with asyncio.timeout(ANSWER):
                    await self._spoke.wait()
            except TimeoutError:
                self._lose(psycopg.OperationalError(SILENT))
            except psycopg.Error as error:
                self._lose(error)

    def _readable(self) -> None:
        """Called by the event loop: the server has sent something, or has gone."""
        assert self._connection is not None  # noqa: S101 - while there is a reader there is a connection
        pgconn = self._connection.pgconn
        self._spoke.set()
        try:
            # The farewell of a server and the end of its stream are two things to read, both at once.
            pgconn.consume_input()
            pgconn.consume_input()
            while not pgconn.is_busy():
                if pgconn.get_result() is None:
                    self._asked = False
                    break
            while (told := pgconn.notifies()) is not None:
                self._heard(told.extra.decode())
        except Exception as error:
            # Of the server, or of who was told: then he has missed it.
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        asyncio.get_running_loop().remove_reader(self._socket)
        # Not close(): a server that says nothing would not answer that either.
        connection.pgconn.finish()
        self._down()
        self._spoke.set()
        self._ended.set_result(error)

    async def _again(self) -> None:
        pause = _PAUSE
        while True:
            try:
                await self._listen()
            except Exception as error:
                # Whatever it is: who listens no more is never told of it, so it is tried for ever.
                log.debug("%s is still not heard: %s", self._channel, error)
            else:
                log.info("%s is heard again", self._channel)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
