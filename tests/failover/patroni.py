"""Debian's Patroni with an etcd, on loopback: two PostgreSQLs, one of which leads, and Patroni says which."""

import json
import os
import pwd
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.cli.conftest import processes, until

BIN = Path("/usr/lib/postgresql/15/bin")
PROGRAMS = ("/usr/bin/patroni", "/usr/bin/etcd", str(BIN / "postgres"))
# Seconds without a word of the leader after which another is made: the least that Patroni takes is 20.
TTL, LOOP_WAIT, RETRY_TIMEOUT = 20, 2, 3
PASSWORD = "only on this machine"


def missing() -> str:
    """Which of Debian's programs is not here; nothing when all are."""
    return next((program for program in PROGRAMS if not Path(program).exists()), "")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def said(url: str) -> dict[str, Any]:
    """The JSON that is answered; nothing while nobody answers."""
    with suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - it is http
        return dict(json.load(answer))
    return {}


class Member:
    """One PostgreSQL and the Patroni that runs it."""

    def __init__(self, folder: Path, name: str, etcd: int) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir(mode=0o700)
        self.port, self._api = free_port(), free_port()
        self._config = self.folder / "patroni.json"
        # JSON is YAML, too.
        self._config.write_text(json.dumps(self._settings(etcd)))
        self._process: subprocess.Popen[bytes] | None = None

    def _settings(self, etcd: int) -> dict[str, Any]:
        access = ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"]
        return {
            "scope": "crafely",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self._api}", "connect_address": f"127.0.0.1:{self._api}"},
            "etcd3": {"hosts": [f"127.0.0.1:{etcd}"]},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": RETRY_TIMEOUT,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": {"wal_keep_size": "256MB"}},
                },
                "initdb": [{"encoding": "UTF8"}, "data-checksums", {"locale": "C.UTF-8"}],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.folder / "data"),
                "bin_dir": str(BIN),
                "pgpass": str(self.folder / "pgpass"),
                "pg_hba": access,
                "authentication": {
                    "superuser": {"username": "postgres", "password": PASSWORD},
                    "replication": {"username": "replicator", "password": PASSWORD},
                },
                "parameters": {
                    "unix_socket_directories": str(self.folder),
                    "fsync": "off",
                    "shared_buffers": "32MB",
                    "shared_preload_libraries": "pg_stat_statements",
                },
            },
        }

    def start(self) -> "Member":
        self._process = run(["/usr/bin/patroni", str(self._config)], self.folder)
        return self

    def state(self) -> dict[str, Any]:
        """What its Patroni says of it; nothing while it does not answer."""
        return said(f"http://127.0.0.1:{self._api}/patroni")

    @property
    def leads(self) -> bool:
        state = self.state()
        # Patroni 4 has another word for it.
        return state.get("role") in {"master", "primary"} and state.get("state") == "running"

    def kill(self) -> None:
        """``kill -9`` of both, as when the machine goes."""
        # Patroni first, or it would start the other again.
        for _ in range(2):
            for pid in sorted(processes(self.folder)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=60)
        until(lambda: not processes(self.folder), f"the end of {self.name}")


def run(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Starts a program in a folder that it may write to, as PostgreSQL's user where we are root, and logs beside it."""
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        for path in (folder, *folder.iterdir()):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **user,
        )


@contextmanager
def etcd(folder: Path) -> Iterator[int]:
    """Gives the port of an etcd of one member."""
    home = folder / "etcd"
    home.mkdir(mode=0o700)
    port, peers = free_port(), free_port()
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    options = ["--data-dir", str(home / "data"), "--listen-client-urls", client, "--advertise-client-urls", client]
    options += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    options += ["--initial-cluster", f"default={peer}", "--unsafe-no-fsync"]
    process = run(["/usr/bin/etcd", *options], home)

    try:
        until(lambda: said(f"{client}/health").get("health") == "true", "etcd")
        yield port
    finally:
        process.kill()
        process.wait(timeout=60)


@contextmanager
def members(folder: Path) -> Iterator[tuple[Member, Member]]:
    """Who leads, and its synchronous standby."""
    with ExitStack() as stack:
        port = stack.enter_context(etcd(folder))
        first, second = Member(folder, "a", port), Member(folder, "b", port)
        for member in (first, second):
            stack.callback(member.kill)
        first.start()
        until(lambda: first.leads, "a leader")
        second.start()
        until(lambda: second.state().get("state") == "running", "its standby")
        until(lambda: _synchronous(first), "the standby to be synchronous")
        yield first, second


def _synchronous(leader: Member) -> bool:
    return any(one.get("sync_state") in {"sync", "quorum"} for one in leader.state().get("replication", []))
