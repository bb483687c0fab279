"""Serving with several processes: gunicorn with aiohttp's worker class, told what the settings say."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from crafely.api import server, telemetry
from crafely.config import Settings
from crafely.db.query import WrongRoleError
from crafely.db.session import DatabaseUnavailableError, accepts
from crafely.keyring import KeyringError

log = logging.getLogger(__name__)

# Seconds without a sign of life after which a worker is replaced, at least: it may have to wait for the database.
WORKER_TIMEOUT = 12
# How often a worker that starts is refused by the database before it gives up, and the seconds between two attempts.
REFUSALS, RETRY_SECONDS = 3, 0.2


def serve(settings: Settings, url: str, sock: socket.socket, ready: Callable[[], None]) -> int:
    """Serves with ``settings.workers`` processes until told to stop (signals.py); calls ``ready`` before they start.

    A worker that dies is replaced. Gives the exit code: 1 when workers cannot start, or start no more. Raises
    DatabaseUnavailableError, WrongRoleError or KeyringError.
    """
    # Asked once here, so that a mistake is told once and not by each worker.
    asyncio.run(server.probe(settings, url))
    if settings.rate_limit_storage is None:
        log.warning(
            "rate limits: each of %d workers counts alone; CRAFELY_RATE_LIMIT_STORAGE has them count together",
            settings.workers,
        )
    parent = os.getpid()
    try:
        # Its signal handlers stay when it has ended: a second Ctrl-C does not cut short what the caller has to stop.
        _Arbiter(_Application(settings, url, sock, ready)).run()
    except SystemExit as stopped:
        code = 1 if stopped.code else 0
        if os.getpid() != parent:
            # A worker ends here: what this process's callers hold open is its parent's to close.
            os._exit(int(stopped.code or 0))
        return code
    return 0


class _Arbiter(Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    def init_signals(self) -> None:
        ignored = {number for number in self.SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
        super().init_signals()
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    def stop(self, graceful: bool = True) -> None:
        try:
            super().stop(graceful)
        except HaltServer:
            # Another worker could not start either; that must not keep the rest from being stopped.
            self.stop(graceful)

    def reap_workers(self) -> None:
        super().reap_workers()
        if not self.LISTENERS:
            # Stopping. gunicorn says so once, and a worker that has just been forked does not hear it; to the others
            # it is nothing new, but that aiohttp's worker hears SIGTERM within a second and SIGQUIT, as mild, at once.
            self.kill_workers(signal.SIGQUIT)

    # To gunicorn SIGHUP means new settings; ours do not change, and a closed terminal must leave nothing behind.
    handle_hup = Arbiter.handle_term


class _Worker(GunicornUVLoopWebWorker):
    def run(self) -> None:
        try:
            super().run()
        except (DatabaseUnavailableError, WrongRoleError, KeyringError) as error:
            log.critical("this worker cannot start: %s", error)
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def _run(self) -> None:
        """Starts as soon as the database's server is there.

        A worker is also started because another one has died, and the database may be away at that moment: the other
        workers wait for it, and so does this one; also while others use all of its connections. That ends nothing; a
        server that is there and refuses us does.
        """
        refused = 0
        while self.alive:
            if all(accepts(url) for url in self.app.urls):
                try:
                    await super()._run()
                except DatabaseUnavailableError as error:
                    # Or it has gone, or come, since it was asked.
                    refused += not error.passes
                    if refused == REFUSALS:
                        raise
                else:
                    return
            log.warning("this worker waits for the database")
            self.notify()
            await asyncio.sleep(RETRY_SECONDS)


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, settings: Settings, url: str, sock: socket.socket, ready: Callable[[], None]) -> None:
        self._settings = settings
        # All that a worker needs to start.
        self.urls = [url, *([settings.pooler_url] if settings.pooler_url is not None else [])]
        self._url = url
        self._socket = sock
        self._ready = ready
        super().__init__()

    def load_config(self) -> None:
        """Tells gunicorn; what is not said here is its default."""
        for name, value in {
            # Given away, so that nobody listens any more once gunicorn has closed it.
            "bind": f"fd://{self._socket.detach()}",
            "workers": self._settings.workers,
            "worker_class": _Worker,
            # Nobody's request is to wait longer for one that does nothing.
            "timeout": max(WORKER_TIMEOUT, int(self._settings.request_timeout)),
            "graceful_timeout": int(self._settings.shutdown_grace) + 1,
            "logger_class": _Logger,
            "control_socket_disable": True,
            "when_ready": lambda _: self._ready(),
            "child_exit": lambda _, worker: telemetry.mark_dead(worker.pid),
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[[], Awaitable[web.AppRunner]]:
        """What each worker serves, made after the fork."""

        async def make() -> web.AppRunner:
            return server.runner(self._settings, self._url)

        return make


class _Logger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Gunicorn's messages among all others, as JSON."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002 - gunicorn's signature
        """Leaves the format to the root logger. At info gunicorn tells each of its steps; what goes wrong is enough."""
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.setLevel(max(logging.getLogger().level, logging.WARNING))
