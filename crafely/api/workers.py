"""Serving with several processes: gunicorn with aiohttp's worker class, told what the settings say."""

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from crafely.api import server, telemetry
from crafely.config import Settings

# Seconds without a sign of life after which a worker is replaced.
WORKER_TIMEOUT = 60


def serve(settings: Settings, url: str, sock: socket.socket, ready: Callable[[], None]) -> int:
    """Serves with ``settings.workers`` processes until SIGINT or SIGTERM; calls ``ready`` when they are started.

    A worker that dies is replaced. Gives the exit code: 0 unless the workers cannot start.
    """
    try:
        _Application(settings, url, sock, ready).run()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, settings: Settings, url: str, sock: socket.socket, ready: Callable[[], None]) -> None:
        self._settings = settings
        self._url = url
        self._socket = sock
        self._ready = ready
        super().__init__()

    def load_config(self) -> None:
        """Tells gunicorn; what is not said here is its default."""
        for name, value in {
            "bind": f"fd://{os.dup(self._socket.fileno())}",
            "workers": self._settings.workers,
            "worker_class": "aiohttp.GunicornUVLoopWebWorker",
            "timeout": WORKER_TIMEOUT,
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

    def run(self) -> None:
        """Runs until stopped."""
        Arbiter(self).run()


class _Logger(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """Gunicorn's messages among all others, as JSON."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002 - gunicorn's signature
        """Leaves the format to the root logger."""
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.setLevel(logging.getLogger().level)
