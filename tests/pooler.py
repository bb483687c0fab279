"""Debian's PgBouncer in transaction mode before the server of a test; or of all tests: make test POOLER=1.

Then every Database that a test makes on the run's server goes through it, and so does every process of crafely that is
told CRAFELY_DATABASE_URL; but not where a test is marked ``direct``, which has to say why.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db.session import Database

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")

# Whether all tests are to run behind one.
ASKED_FOR = os.environ.get("CRAFELY_TEST_POOLER", "") not in {"", "0"}
PASSWORD = "of-the-pooler"
PORT = 6432


class Pooler:
    """A PgBouncer that leads to every database of a server. It can be ended, killed and started again."""

    def __init__(self, server_url: str, folder: Path, **settings: object) -> None:
        """Takes the URL of the server, a folder of its own, and settings of its ini file."""
        behind = conninfo_to_dict(server_url)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        # PgBouncer does not run as root. Who owns the server's socket may enter its folder.
        host = Path(str(behind.get("host") or ""))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = host.stat() if host.is_absolute() else None
            self._user = {
                "user": owner.st_uid if owner else "nobody",
                "group": owner.st_gid if owner else "nogroup",
                "extra_groups": [],
            }
        where = {key: behind[key] for key in ("host", "port", "password") if behind.get(key)}
        lines = {
            "listen_addr": "",
            "unix_socket_dir": folder,
            "listen_port": PORT,
            "auth_type": "scram-sha-256",
            "auth_file": folder / "users.txt",
            "pool_mode": "transaction",
            "default_pool_size": 2,
            "max_client_conn": 500,
            "logfile": folder / "pgbouncer.log",
            "admin_users": "pooler",
            **settings,
        }
        (folder / "pgbouncer.ini").write_text(
            "[databases]\n* = "
            + " ".join(f"{key}={value}" for key, value in where.items())
            + "\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        (folder / "users.txt").write_text("")
        for path in [folder, *folder.iterdir()]:
            if self._user:
                shutil.chown(path, self._user["user"], self._user["group"])
        self._behind = behind.get("host"), behind.get("port")
        self._logins: set[str] = set()
        self.admit(str(behind.get("user") or "postgres"))
        self.admit("pooler")

    def admit(self, login: str) -> None:
        """Lets a login in, with the password."""
        if login not in self._logins:
            self._logins.add(login)
            with (self._folder / "users.txt").open("a") as file:
                file.write(f'"{login}" "{PASSWORD}"\n')
            if self._process is not None:
                self.console("reload")

    def leads_to(self, url: str) -> bool:
        """Whether a URL is one of the server's, and says nothing that a pooler would have to be told."""
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            return False
        plain = set(given) <= {"host", "port", "user", "password", "dbname"}
        return plain and (given.get("host"), given.get("port")) == self._behind

    def url(self, behind: str, **parts: Any) -> str:
        """The URL through the pooler of the database that a URL of the server names."""
        there = {key: value for key, value in conninfo_to_dict(behind).items() if key in {"user", "dbname"}}
        return make_conninfo(**{**there, "host": str(self._folder), "port": PORT, "password": PASSWORD, **parts})

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        assert PROGRAM is not None
        self._process = subprocess.Popen(
            [PROGRAM, "-q", str(self._folder / "pgbouncer.ini")],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._user,
        )
        end = time.monotonic() + 30
        while True:
            try:
                self.show("version")
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
                time.sleep(0.02)
            else:
                return

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it at once: in order, or killed."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def show(self, what: str) -> list[dict[str, Any]]:
        """What its console answers to SHOW."""
        return self.console(f"show {what}")

    def console(self, command: str) -> list[dict[str, Any]]:
        """Runs a command of its console."""
        # The console speaks the simple protocol only, and knows no transactions.
        url = self.url("user=pooler dbname=pgbouncer")
        with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            cursor = connection.execute(command.encode())
            names = [column.name for column in cursor.description or []]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()] if names else []

    def log(self) -> str:
        """What it has written."""
        path = self._folder / "pgbouncer.log"
        return path.read_text() if path.exists() else ""


@contextmanager
def pooling(server_url: str, **settings: object) -> Iterator[Pooler]:
    """A pooler that runs, before the server at a URL."""
    # Not pytest's own folder, which the pooler's user may not enter; and short, for the socket's sake.
    folder = Path(tempfile.mkdtemp(prefix="crafely-pooler-"))
    pooler = Pooler(server_url, folder, **settings)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


class Between:
    """The pooler of all tests, where that is asked for."""

    def __init__(self) -> None:
        self._pooler: Pooler | None = None
        # What runs now has to have the server itself.
        self.direct = False

    def url(self, url: str) -> str | None:
        """The URL through the pooler, where there is one and it leads there."""
        if self._pooler is None or self.direct or not self._pooler.leads_to(url):
            return None
        self._pooler.admit(str(conninfo_to_dict(url).get("user") or "postgres"))
        return self._pooler.url(url)

    @contextmanager
    def before(self, server_url: str) -> Iterator[None]:
        """Puts it before every Database of this process on the server."""
        made = Database.__init__

        def through(database: Database, url: str, *, pooler: str | None = None, **options: Any) -> None:
            made(database, url, pooler=pooler or self.url(url), **options)

        with (
            pooling(server_url, default_pool_size=20, server_login_retry=1) as self._pooler,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(Database, "__init__", through)
            yield
        self._pooler = None


between = Between()
