"""aiohttp's low-level server, for what its Application would add to each request is done here in fewer steps."""

import asyncio
import fcntl
import logging
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from aiohttp import HttpVersion10, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, PayloadAccessError, _ErrInfo

from crafely.api.answer import Answer
from crafely.api.dispatch import Dispatch, broken

log = logging.getLogger("crafely")

Lifetime = Callable[[web.Application], AsyncIterator[None]]

# Seconds for which a connection is left alone that is idle: its client may be about to send something.
YOUNG = 1.0
# Connections beyond the most that are still told so; further ones are cut without a word.
TOLD = 100
# Bytes a second that a client must take of what it has asked for.
SLOWEST = 4096
# What becomes of a body that is asked for when its request has been answered.
_OVER = PayloadAccessError()
# What is said where there is no request to say it to.
_REFUSALS = {400: "bad_request", 408: "request_timeout", 503: "unavailable"}


class Runner(web.AppRunner):
    """Runs the server; gunicorn's worker takes an AppRunner and nothing else.

    Takes what answers requests, a generator that opens what it needs and closes it at the end, the largest body in
    bytes, the most open connections, the seconds that the head of a request may take and that a client may leave its
    answer unread, and aiohttp's limits: ``shutdown_timeout`` and the options of web.RequestHandler.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        lifetime: Lifetime,
        *,
        max_body: int,
        max_connections: int,
        patience: float,
        **limits: Any,
    ) -> None:
        # The application holds the lifetime; no request ever reaches it.
        app = web.Application()
        app.cleanup_ctx.append(lifetime)
        super().__init__(app, shutdown_timeout=limits.pop("shutdown_timeout", 60))
        self._dispatch = dispatch
        self._max_body = max_body
        self._max_connections = max_connections
        self._patience = patience
        self._limits = limits

    async def _make_server(self) -> web.Server:
        # aiohttp's runners differ in this method; it has no public name for it.
        await super()._make_server()
        return _Server(self._dispatch, self._max_body, self._max_connections, self._patience, self._limits)


class _Server(web.Server):
    """All connections, and what is done about those that take too much of anything."""

    _connections: "dict[_Connection, asyncio.Transport]"  # type: ignore[assignment]  # it makes no others

    def __init__(
        self, dispatch: Dispatch, max_body: int, max_connections: int, patience: float, limits: dict[str, Any]
    ) -> None:
        super().__init__(dispatch, request_factory=self._request)
        self._current_loop = asyncio.get_running_loop()
        self._max_body = max_body
        self._max_connections = max_connections
        self._patience = patience
        self._limits = limits
        self._watching = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Takes a connection on; where there are too many, the one that has asked for nothing for longest goes."""
        super().connection_made(handler, transport)
        if not self._watching:
            self._watch()
        beyond = len(self._connections) - self._max_connections
        if beyond <= 0:
            return
        # Half a head is no request: who sends no more than that is idle.
        idle = [one for one in self._connections if one.idle]
        oldest = min(idle, key=_Connection.idle_since, default=None)
        if oldest is not None and self._current_loop.time() - oldest.idle_since() > YOUNG:
            oldest.force_close()
        elif beyond <= TOLD:
            handler.refused = True  # type: ignore[attr-defined]  # it is one of ours
        else:
            # Not at once: what serves it has still to begin.
            self._current_loop.call_soon(transport.abort)

    def _watch(self) -> None:
        """One timer for all connections: it looks ten times within their patience."""
        self._watching = True
        self._current_loop.call_later(self._patience / 10, self._sweep)

    def _sweep(self) -> None:
        self._watching = False
        now = self._current_loop.time()
        for connection, transport in list(self._connections.items()):
            connection.look(transport, now, self._patience)
        if self._connections:
            self._watch()

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=self._current_loop,
            logger=log,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's way to say none; dispatch writes a better one
            auto_decompress=False,  # bodies come as they are or are refused: nothing unpacks what nobody asked for
            **self._limits,
        )

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, self._current_loop, client_max_size=self._max_body
        )


class _Connection(web.RequestHandler):
    __slots__ = ("_begun", "_held", "_owed", "_writer", "refused")

    _held: bool
    # When the head began to arrive that is not here yet; 0: there is none.
    _begun: float
    # When the client was last looked at while it left its answer unread, and the bytes that it had still to take.
    _owed: tuple[float, int] | None
    # Of all requests: an answer of ours leaves nothing behind in it, and any other is the last.
    _writer: StreamWriter
    # Whether there are too many others.
    refused: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._held = self.refused = False
        self._begun, self._owed = 0.0, None
        self._writer = StreamWriter(self, self._loop)
        super().connection_made(transport)

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, or for the rest of its head."""
        return self._waiter is not None and not self._waiter.done() and not self.refused

    def idle_since(self) -> float:
        """When it was made, or its last answer was sent."""
        return self._next_keepalive_close_time - self._keepalive_timeout

    def data_received(self, data: bytes) -> None:
        """Takes what has arrived."""
        waiter = self._waiter
        super().data_received(data)
        if waiter is None or waiter.done():
            self._begun = 0.0
        elif not self._begun:
            self._begun = self._loop.time()
        if self.refused:
            self._refuse(503)

    async def start(self) -> None:
        """Answers the requests of a connection, one after the other.

        aiohttp makes a task for each, so that what one sets in a context is not seen by the next: two turns of the
        loop, an eighth of what a warm request costs. Here nothing is set in a context but the request's id, and that
        anew by each.
        """
        while not self._force_close:
            if not self._messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            if not await self._answer_next() or self._close or self._force_close:
                break
            if self._messages:
                # Who sends many at once has them answered, but not while all others wait.
                await asyncio.sleep(0)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _answer_next(self) -> bool:
        """Answers the request that came first of those that are here; says whether the connection may be kept."""
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        manager = self._manager
        assert manager is not None  # noqa: S101 - it is, until the connection is lost, and then nothing gets here
        manager.requests_count += 1
        answer_to = manager.request_handler
        if not isinstance(message, _ErrInfo) and message.version < HttpVersion10:
            # It knows neither a status nor headers: nobody who speaks it could read our answer.
            message = _ErrInfo(400, HttpProcessingError(code=400), "")
        if isinstance(message, _ErrInfo):
            answer_to, message = self._make_error_handler(message), ERROR
        # This very task, until the connection is lost.
        task = self._task_handler or asyncio.current_task()
        assert task is not None  # noqa: S101 - this runs in one
        request = manager.request_factory(message, payload, self, self._writer, task)
        try:
            answer, gone = await self._answer(request, answer_to)
            if gone:
                return False
            self._keepalive = bool(answer.keep_alive)
            if not payload.is_eof():
                await self._skip(payload)
            payload.set_exception(_OVER)
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception:
            log.exception("a connection failed unexpectedly")
            self.force_close()
        if self._keepalive:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        return self._keepalive

    async def _answer(self, request: web.BaseRequest, answer_to: Any) -> tuple[web.StreamResponse, bool]:
        """Has a request answered; says whether the client had gone. Who stops the server waits for this."""
        self._request_in_progress, self._current_request = True, request
        try:
            answer = await answer_to(request)
            self._current_request = None
            return await self.finish_response(request, answer, None)
        finally:
            self._request_in_progress, self._current_request = False, None
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)

    async def _skip(self, payload: StreamReader) -> None:
        """Reads the rest of a body that nobody wanted; after a while the connection ends instead."""
        if self._lingering_time and not self._force_close:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof():
            self.close()

    def resume_writing(self) -> None:
        """The client has taken what it was sent."""
        self._owed = None
        super().resume_writing()

    def look(self, transport: asyncio.Transport, now: float, patience: float) -> None:
        """Ends the connection of a client that takes too long: with the head of a request, or to read its answer."""
        if self._begun and self.idle and now - self._begun > patience:
            self._begun = 0.0
            self._refuse(408)
        if self._paused or transport.is_closing():
            left = _unread(transport)
            since, owed = self._owed = self._owed or (now, left)
            seconds = now - since
            if seconds > patience:
                if owed - left < SLOWEST * seconds:
                    transport.abort()
                # What it has taken since counts: its system takes some MB before anybody reads.
                self._owed = (now, left)

    def _refuse(self, status: int) -> None:
        """Has an answer sent, and the connection closed, in place of what the client might still send."""
        self.refused = False
        self._messages.appendleft((_ErrInfo(status, HttpProcessingError(code=status), ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_reading(self) -> None:
        self._held = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Goes on reading. aiohttp asks for it with every body, and where nothing was held back has nothing to do."""
        if self._held:
            self._held = False
            super().resume_reading(resume_parser)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what is refused before it is a request. No failure of ours: one access line, and no traceback."""
        if status not in _REFUSALS:
            return super().handle_error(request, status, exc, message)
        return broken(request, _REFUSALS[status])

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends an answer; says whether the client had gone. What aiohttp does besides is for other responses."""
        # After a request to change the protocol, which nobody grants here, aiohttp has to pick up the rest.
        if self._upgraded or not isinstance(resp, Answer):
            return await super().finish_response(request, resp, start_time)
        try:
            resp.send(request)
            if self.writing_paused:
                await resp.write_eof()
        except ConnectionError:
            return resp, True
        return resp, False


def _unread(transport: asyncio.Transport) -> int:
    """The bytes that the client has still to take: ours, and the system's, which it asks for more of only by the MB."""
    sock = transport.get_extra_info("socket")
    try:
        (kept,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except (OSError, ValueError):
        # It is closed (and has no number any more), or the system has another name for it.
        kept = 0
    return transport.get_write_buffer_size() + int(kept)
