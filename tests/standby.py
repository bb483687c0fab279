"""A primary with streaming standbys, of the programs of this run: harmed, promoted and attached anew as a test likes.

``with standby.servers(folder) as (a, b):`` gives a primary and one standby of it, each in a folder of its own below
the given one, named like it, and reached through a Unix socket there.
"""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

import psycopg

from crafely.db import embedded
from crafely.db.cluster import DATABASE, PORT, SUPERUSER, Cluster
from tests.cli.conftest import until

SECONDS = 60
SETTINGS = MappingProxyType(
    {
        # A server that is killed loses nothing by this: what it has written is the system's.
        "fsync": "off",
        "shared_buffers": "32MB",
        # For a standby that was away, and for pg_rewind.
        "wal_keep_size": "512MB",
        "wal_receiver_timeout": "5s",
        # Where it has lost its primary it asks again soon.
        "wal_retrieve_retry_interval": "100ms",
    }
)


def programs() -> Path | None:
    """The folder of the programs of this run; None: the wheel's, also where the tests use a server that runs."""
    named = os.environ.get("CRAFELY_TEST_POSTGRES", "")
    return Path(named) if named and not named.startswith("postgres") else None


class Node:
    """One server. Not started yet; made with ``primary``, or with ``standby_of``."""

    def __init__(self, folder: Path, *, programs: Path | None = None, **settings: str) -> None:
        """Takes a folder, whose name is the server's, the folder of the programs, and settings of the server."""
        self.name = folder.name
        self.cluster: Cluster = embedded._find(folder, programs)
        # What a standby tells its primary, and what synchronous_standby_names knows it by.
        self._settings = {**SETTINGS, **settings, "cluster_name": self.name}

    @property
    def url(self) -> str:
        """The superuser's, of this server alone."""
        return self.cluster.url

    @contextmanager
    def looking(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """A superuser's connection that commits each statement."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=10) as connection:
            yield connection

    def ask(self, statement: str) -> object:
        """The first column of the first row."""
        with self.looking() as connection:
            row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None

    def primary(self) -> "Node":
        """Makes it and starts it."""
        self.cluster.initialise(durable=False)
        self.start()
        return self

    def standby_of(self, primary: "Node") -> "Node":
        """Makes it from a base backup, and starts it."""
        self.cluster.pgdata.mkdir(mode=0o700)
        self.cluster._give(self.cluster.pgdata)
        source = [f"--host={primary.cluster.socket}", f"--port={PORT}", f"--username={SUPERUSER}"]
        self._run("pg_basebackup", *source, "--pgdata=postgres", "--checkpoint=fast", "--no-sync")
        self._follow(primary)
        return self

    def rejoin(self, primary: "Node") -> "Node":
        """Follows another primary, back at the point where their ways parted, if need be; it must be down."""
        # Left by a kill; where nobody has collected the dead process, it would pass for a server that runs.
        (self.cluster.pgdata / "postmaster.pid").unlink(missing_ok=True)
        # Up to PostgreSQL 15 pg_rewind sees a promotion only after the checkpoint that follows it.
        with primary.looking() as connection:
            connection.execute("checkpoint")
        # With our settings: as it recovers, wal_keep_size is what keeps the log that pg_rewind is about to read.
        settings = f"--config-file={self.cluster.home / 'postgres.conf'}"
        source = f"--source-server={primary.url}"
        self._run("pg_rewind", "--target-pgdata=postgres", settings, source, "--no-sync")
        self._follow(primary)
        return self

    def _follow(self, primary: "Node") -> None:
        to = f"host={primary.cluster.socket} port={PORT} user={SUPERUSER}"
        self._settings["primary_conninfo"] = to
        self._settings["recovery_target_timeline"] = "latest"
        signal_file = self.cluster.pgdata / "standby.signal"
        signal_file.touch(mode=0o600)
        self.cluster._give(signal_file)
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        done = self.cluster.run(program, *arguments, seconds=SECONDS)
        assert done.returncode == 0, done

    def start(self) -> None:
        """Starts it, as what it was, and makes its database where that is missing."""
        self.cluster.start(self._settings)
        until(self.cluster.accepts, f"{self.name} to take connections")

    def stop(self) -> None:
        """Stops it in order."""
        self.cluster.stop()

    def kill(self) -> None:
        """``kill -9`` of all of it, as when its machine goes; gone when it returns, also where it was frozen."""
        processes = self._processes()
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(_runs, processes)), f"the end of {self.name}")

    def _processes(self) -> list[int]:
        """The postmaster, then its children."""
        postmaster = int((self.cluster.pgdata / "postmaster.pid").read_text().split()[0])
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == postmaster:
                    found.append(int(process.name))
        return [postmaster, *found]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All of it does nothing: connections are taken, by the system, and nobody answers."""
        # The postmaster first: then there are no new ones.
        stopped = self._processes()[:1]
        os.kill(stopped[0], signal.SIGSTOP)
        try:
            for pid in self._processes()[1:]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def promote(self) -> None:
        """Makes a primary of a standby; it writes when this returns."""
        assert self.ask(f"select pg_promote(wait_seconds => {SECONDS})") is True

    def pause(self) -> None:
        """Has a standby apply nothing more: what it receives it only stores."""
        with self.looking() as connection:
            connection.execute("select pg_wal_replay_pause()")
        until(lambda: self.ask("select pg_get_wal_replay_pause_state()") == "paused", "replay to pause")

    def resume(self) -> None:
        """Has it go on."""
        with self.looking() as connection:
            connection.execute("select pg_wal_replay_resume()")

    def synchronous(self, *standbys: "Node") -> None:
        """A commit of this primary waits until one of these has stored it; of none: it waits for nobody."""
        names = f"ANY 1 ({', '.join(node.name for node in standbys)})" if standbys else ""
        with self.looking() as connection:
            connection.execute(f"alter system set synchronous_standby_names = '{names}'".encode())
            connection.execute("select pg_reload_conf()")
        waiting = "select count(*) from pg_stat_replication where sync_state in ('quorum', 'sync')"
        until(lambda: self.ask(waiting) == len(standbys), "the standbys to be synchronous")

    def caught_up(self, primary: "Node") -> None:
        """Waits until it has applied what the primary has written by now."""
        self.caught_up_with(primary.url)

    def caught_up_with(self, url: str) -> None:
        """The same, for a primary at a URL."""
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute("select pg_current_wal_flush_lsn()::text").fetchone()
        position = row[0] if row else None
        until(lambda: self.ask(f"select pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"), f"{self.name} to catch up")


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def url(nodes: Sequence[Node], **parameters: str) -> str:
    """One URL that names them all, in this order, and says what libpq is to take of them."""
    hosts = ",".join(quote(os.fsencode(node.cluster.socket), safe="") for node in nodes)
    more = "".join(f"&{name}={quote(value, safe='')}" for name, value in parameters.items())
    return f"postgresql://{SUPERUSER}@/{DATABASE}?host={hosts}&port={PORT}{more}"


@contextmanager
def servers(folder: Path, standbys: int = 1, **settings: str) -> Iterator[list[Node]]:
    """A primary, a, and its standbys, b, c …, in folders of these names; in the end they are killed.

    Takes a folder that the server's user can pass (``new_folder`` of tests/cli/conftest.py) and settings for all.
    """
    nodes = [Node(folder / name, programs=programs(), **settings) for name in "abcdefgh"[: standbys + 1]]
    try:
        primary = nodes[0].primary()
        for node in nodes[1:]:
            node.standby_of(primary)
        yield nodes
    finally:
        for node in nodes:
            if node.cluster.listening():
                node.kill()
            if node.cluster.socket.parent != node.cluster.home:
                shutil.rmtree(node.cluster.socket, ignore_errors=True)
