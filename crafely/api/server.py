"""The server, on aiohttp's low-level one, and serving with one process. ``workers.py`` serves with several."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable

import uvloop
from aiohttp import web

from crafely import signals
from crafely.api import ROUTES, housekeeping, openapi, telemetry
from crafely.api.connection import Runner
from crafely.api.dispatch import Dispatch
from crafely.api.services import Services
from crafely.api.wire import mount
from crafely.config import Settings

log = logging.getLogger("crafely")

# Connections that wait to be accepted.
BACKLOG = 1024
# Seconds that an idle connection is kept for its client's next request.
KEEPALIVE = 75.0
# The request line and each header, in bytes.
MAX_HEADER = 16 * 1024


def runner(settings: Settings, url: str) -> Runner:
    """What serves the route table on the database at a libpq URL.

    It connects when it is set up (DatabaseUnavailableError) and does its housekeeping while it runs.
    """
    services = Services(settings, url, openapi.build(ROUTES))

    async def running(_: web.Application) -> AsyncIterator[None]:
        try:
            await services.open()
            async with telemetry.handing_over(), housekeeping.running(services):
                yield
        finally:
            await services.close()

    return Runner(
        Dispatch(mount(ROUTES, services), services, settings.request_timeout),
        running,
        max_body=settings.max_body_bytes,
        max_connections=settings.max_connections,
        patience=settings.request_timeout,
        keepalive_timeout=KEEPALIVE,
        max_line_size=MAX_HEADER,
        max_field_size=MAX_HEADER,
        shutdown_timeout=settings.shutdown_grace,
        lingering_time=2.0,
    )


def serve(settings: Settings, url: str, sock: socket.socket, ready: Callable[[], None]) -> int:
    """Serves with this process until it is told to stop (signals.py); calls ``ready`` when requests are answered.

    Then no new connection is taken, requests in flight have ``shutdown_grace`` seconds to finish, and all is closed.
    Gives the exit code.
    """
    # uvloop's signal handlers stay when it has ended: a second Ctrl-C does not cut short what the caller has to stop.
    uvloop.run(_serve(settings, url, sock, ready))
    return 0


async def _serve(settings: Settings, url: str, sock: socket.socket, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in signals.heeded():
        loop.add_signal_handler(number, stop.set)
    app_runner = runner(settings, url)
    try:
        await app_runner.setup()
        await web.SockSite(app_runner, sock, backlog=BACKLOG).start()
        ready()
        await stop.wait()
        log.info("stopping: requests in flight have %g s to finish", settings.shutdown_grace)
    finally:
        # A second Ctrl-C must not cut the clean-up short.
        await app_runner.cleanup()


async def probe(settings: Settings, url: str) -> None:
    """Connects as a serving process will, and leaves again.

    Raises DatabaseUnavailableError, WrongRoleError or KeyringError.
    """
    services = Services(settings, url, b"")
    try:
        await services.open()
    finally:
        await services.close()
