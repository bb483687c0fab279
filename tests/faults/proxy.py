"""What can happen to a network: it delays, swallows, cuts. A TCP proxy before PostgreSQL, in a thread of its own."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

# Closing without a farewell: the peer gets a reset.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Passes everything on, until it is told otherwise."""

    def __init__(self) -> None:
        self._server: dict[str, Any] = {}
        self._writers: list[asyncio.StreamWriter] = []
        # Nothing is passed on, of old connections and of new ones; what has come meanwhile goes on afterwards.
        self.silent = False
        # It falls silent when a client sends these bytes.
        self.silent_at: bytes | None = None
        # Seconds before each piece is passed on.
        self.delay = 0.0
        # The connection whose server says these bytes is reset after the half of them.
        self.cut_at: bytes | None = None
        # How often it has fallen silent, or cut.
        self.struck = 0

    @contextmanager
    def between(self, url: str) -> Iterator[str]:
        """Takes the libpq URL of the server, and gives the one to connect to."""
        self._server = conninfo_to_dict(url)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop, listener))
        thread.start()
        try:
            yield make_conninfo(**{**self._server, "host": "127.0.0.1", "port": port, "sslmode": "disable"})
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        server = loop.run_until_complete(asyncio.start_server(self._accept, sock=listener))
        loop.run_forever()
        server.close()
        loop.run_until_complete(self._end())
        loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        # For what aborting has to call.
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        host, port = str(self._server["host"]), self._server.get("port") or 5432
        try:
            if host.startswith("/"):
                ours = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                ours = await asyncio.open_connection(host, int(port))
        except OSError:
            # The server is away: so are we.
            writer.transport.abort()
            return
        self._writers.append(ours[1])
        await asyncio.gather(self._pass_on(reader, ours[1]), self._answer(ours[0], writer))

    async def _open(self) -> None:
        """Waits while nothing is passed on."""
        await asyncio.sleep(self.delay)
        while self.silent:  # noqa: ASYNC110 - another thread says so
            await asyncio.sleep(0.005)

    async def _pass_on(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.silent_at is not None and self.silent_at in data:
                    self.silent_at, self.silent = None, True
                    self.struck += 1
                await self._open()
                to.write(data)
                await to.drain()
        to.close()

    async def _answer(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open()
                if self.cut_at is not None and self.cut_at in data:
                    half = data.index(self.cut_at) + len(self.cut_at) // 2
                    self.cut_at = None
                    self.struck += 1
                    to.write(data[:half])
                    await to.drain()
                    to.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    to.transport.abort()
                    return
                to.write(data)
                await to.drain()
        to.close()
