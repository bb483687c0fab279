"""aiohttp's low-level server, for what its Application would add to each request is done here in fewer steps."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from crafely.api.answer import Answer
from crafely.api.dispatch import Dispatch, broken

log = logging.getLogger("crafely")

Lifetime = Callable[[web.Application], AsyncIterator[None]]


class Runner(web.AppRunner):
    """Runs the server; gunicorn's worker takes an AppRunner and nothing else.

    Takes what answers requests, a generator that opens what it needs and closes it at the end, the largest body in
    bytes, and aiohttp's limits: ``shutdown_timeout`` and the options of web.RequestHandler.
    """

    def __init__(self, dispatch: Dispatch, lifetime: Lifetime, *, max_body: int, **limits: Any) -> None:
        # The application holds the lifetime; no request ever reaches it.
        app = web.Application()
        app.cleanup_ctx.append(lifetime)
        super().__init__(app, shutdown_timeout=limits.pop("shutdown_timeout", 60))
        self._dispatch = dispatch
        self._max_body = max_body
        self._limits = limits

    async def _make_server(self) -> web.Server:
        # aiohttp's runners differ in this method; it has no public name for it.
        await super()._make_server()
        return _Server(self._dispatch, self._max_body, self._limits)


class _Server(web.Server):
    def __init__(self, dispatch: Dispatch, max_body: int, limits: dict[str, Any]) -> None:
        super().__init__(dispatch, request_factory=self._request)
        self._current_loop = asyncio.get_running_loop()
        self._max_body = max_body
        self._limits = limits

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
    __slots__ = ("_held",)

    _held: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._held = False
        super().connection_made(transport)

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
        """Answers what the parser refuses. That is no failure of ours: one access line, and no traceback."""
        if status != 400:
            return super().handle_error(request, status, exc, message)
        return broken(request)

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
