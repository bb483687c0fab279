"""What can happen to a connection: its server freezes, goes away, ends it, or answers in pieces."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db import embedded


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The server's process says nothing: as when a network has swallowed the connection."""
    if os.environ.get("CRAFELY_TEST_POSTGRES", "").startswith("postgres"):
        pytest.skip("the server's processes are not ours")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def away(server: embedded.Server, url: str) -> Iterator[None]:
    """The database takes no connection, and those that it had are gone."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"alter database {name} allow_connections false".encode())
        # Waits, for some seconds at most, until each is gone.
        connection.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", (name,))
        yield
        connection.execute(f"alter database {name} allow_connections true".encode())


def backends(superuser: psycopg.Connection, application: str) -> list[int]:
    """The processes that serve the connections of this name."""
    found = superuser.execute(
        "select pid from pg_stat_activity where application_name = %s and datname = current_database()", [application]
    )
    return [pid for (pid,) in found]


def end(superuser: psycopg.Connection, *pids: int) -> None:
    """Ends connections from the server's side, and returns when they are gone."""
    for pid in pids:
        assert superuser.execute("select pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)


def end_all(superuser: psycopg.Connection, application: str) -> None:
    """Ends what still serves connections of this name: a server does not notice that nobody waits for what it does."""
    superuser.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where application_name = %s and datname = current_database()",
        [application],
    )


def running(superuser: psycopg.Connection, text: str) -> int:
    """How many backends run a statement with these words at this moment."""
    return superuser.execute(
        "select from pg_stat_activity where state = 'active' and query like %s and datname = current_database()"
        " and pid <> pg_backend_pid()",
        [f"%{text}%"],
    ).rowcount


# What a server says when it is ready for the next statement: the last six bytes of every answer.
_READY = b"Z\x00\x00\x00\x05I"


class Halves:
    """Stands between a client and the server, in threads of its own, and keeps the end of an answer back."""

    def __init__(self, url: str) -> None:
        self._server = conninfo_to_dict(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        # Keep the end of the next answer back; whether it is being kept; whether to let it go.
        self.keep = threading.Event()
        self.kept = threading.Event()
        self.release = threading.Event()
        # Nobody let it go within ten seconds: who should have was held up.
        self.given_up = False

    @contextmanager
    def between(self) -> Iterator[str]:
        """Gives the URL to connect to."""
        self._start(self._accept)
        port = self._listener.getsockname()[1]
        try:
            yield make_conninfo(**{**self._server, "host": "127.0.0.1", "port": port, "sslmode": "disable"})
        finally:
            self._shut(self._listener)
            self.cut()
            for thread in self._threads:
                thread.join()
            for one in (self._listener, *self._sockets):
                one.close()

    def cut(self) -> None:
        """Ends every connection; what was kept back is lost."""
        for one in self._sockets:
            self._shut(one)
        self.release.set()

    @staticmethod
    def _shut(one: socket.socket) -> None:
        # A thread that waits in accept or recv notices only this.
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)

    def _start(self, target: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                self._sockets += [client, server]
                self._start(self._pass_on, client, server, False)
                self._start(self._pass_on, server, client, True)

    def _connect(self) -> socket.socket:
        host, port = str(self._server["host"]), self._server.get("port") or 5432
        if not host.startswith("/"):
            return socket.create_connection((host, int(port)))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _pass_on(self, source: socket.socket, to: socket.socket, from_server: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if from_server and self.keep.is_set() and data.endswith(_READY):
                    self.keep.clear()
                    to.sendall(data[: -len(_READY)])
                    self.kept.set()
                    self.given_up = not self.release.wait(10)
                    data = _READY
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
