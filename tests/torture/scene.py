"""A PostgreSQL that a test keeps alive, with users and their keys, and ``crafely serve`` with several workers on it."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from types import MappingProxyType

from crafely.cli import keys
from crafely.config import Settings
from crafely.db import embedded, migrate
from tests.cli.conftest import PROGRAM, Serving, processes

WORKERS = 2


class Scene:
    """Both, in a folder; the stack stops PostgreSQL, and whoever made the folder what else runs in it.

    Takes how many users, each with a key of these permissions, settings of the server, how many workers, and what
    stands between them and PostgreSQL (given its URL it gives another).
    """

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *,
        users: int,
        permissions: Sequence[str],
        settings: Mapping[str, str] = MappingProxyType({}),
        workers: int = WORKERS,
        between: Callable[[str], AbstractContextManager[str]] = nullcontext,
    ) -> None:
        self._stack = stack
        self.home = folder / "database"
        self.url = self.start()
        migrate.up(self.url)
        # One for each user.
        self.keys = [
            keys.make(Settings(), self.url, user_id=f"user_{n}", name=None, permissions=list(permissions)).token
            for n in range(users)
        ]
        # Each of the users does what a thousand would.
        self.variables = {
            "CRAFELY_DATABASE_URL": stack.enter_context(between(self.url)),
            "CRAFELY_RATE_LIMIT_USER": "off",
            **settings,
        }
        self.serving = Serving(folder, "--workers", str(workers), **self.variables).ready()

    def start(self) -> str:
        """Starts PostgreSQL, with fsync; where it was killed it comes back at the same place. Gives the URL."""
        return self._stack.enter_context(embedded.running(self.home, postgres_bin=self._programs)).url

    @property
    def _programs(self) -> Path | None:
        named = os.environ.get("CRAFELY_TEST_POSTGRES", "")
        # A server that somebody else runs is left alone.
        return Path(named) if named and not named.startswith("postgres") else None

    def restart(self, mode: str) -> None:
        """Restarts PostgreSQL as pg_ctl does it: fast or immediate."""
        cluster = embedded._find(self.home, self._programs)
        options = ["--silent", "--wait", f"--mode={mode}", "--pgdata=postgres"]
        done = cluster.run("pg_ctl", "restart", *options, f"--log={cluster.log.name}", seconds=60)
        assert done.returncode == 0, done

    @property
    def postmaster(self) -> int:
        """The pid of PostgreSQL."""
        return int((self.home / "postgres" / "postmaster.pid").read_text().split()[0])

    def workers(self) -> list[int]:
        """The pids of the workers that run now."""
        found = processes(self.serving.folder).items()
        return sorted(pid for pid, line in found if PROGRAM in line and pid != self.serving.process.pid)

    def stop(self, seconds: float) -> None:
        """Ctrl-C, and an end in order. PostgreSQL goes on."""
        self.serving.ctrl_c()
        assert self.serving.process.wait(timeout=seconds) == 0, self.serving.err[-5000:]
