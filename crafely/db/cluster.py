"""One data folder with the PostgreSQL programs that serve it: made, started, stopped, and its failures in one line.

The folder, the data_dir, holds:

    postgres/       PGDATA, owned by the user that the server runs as
    postgres.conf   written at every start: includes postgres/postgresql.conf, then the settings below
    postgres.log    the server's log; a start that finds it grown begins a new one and keeps it as postgres.log.1
    socket/         the Unix socket; a link to a short folder where the path is too long for one

Callers take turns (embedded.py): nothing here guards against two starts at once.
"""

import errno
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import msgspec
import psycopg

DATABASE = "crafely"
SUPERUSER = "postgres"
PORT = "5432"
START_SECONDS = 60
# What dies with a killed server needs a moment to go.
REMNANT_SECONDS = 3
MAX_LOG_BYTES = 10 * 1024 * 1024
# sun_path holds 104 bytes on BSD and macOS, 108 on Linux, with the closing nul.
MAX_SOCKET_BYTES = 103

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # No port is ever taken: the server is reached through a socket in a folder that only its users can enter.
        "listen_addresses": "",
        "max_connections": "100",
        "shared_buffers": "128MB",
        "work_mem": "8MB",
        "maintenance_work_mem": "64MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Shows in ps, where every server looks alike.
        "cluster_name": "crafely",
        "shared_preload_libraries": "pg_stat_statements",
        "pg_stat_statements.track": "all",
    }
)

_DAMAGE = re.compile(
    r"pg_control|control file|could not find the database system|checkpoint record|incompatible with server|"
    r"not a valid data directory|required WAL directory|could not access status of transaction"
)
# The hint goes with a write that only a part of had room, which the system does not call an error.
_FULL = re.compile(r"No space left on device|Check free disk space")
# What a killed server leaves: for a moment its children's shared memory, for good its pid file.
_REMNANT = re.compile(r"pre-existing shared memory block|lock file .* already exists")


class EmbeddedError(RuntimeError):
    """One clear line: which folder, what is wrong with it, and what to do."""


class StillStartingError(EmbeddedError):
    """The server is up but not ready in time. It must be left to finish."""


class Cluster(msgspec.Struct, frozen=True):
    """A data folder and its programs.

    home is the data_dir and bin the folder of the programs, both absolute; owner is the (uid, gid) that the server runs
    as where that cannot be ourselves, because we are root. Every method raises EmbeddedError, or OSError from the
    folder itself.
    """

    home: Path
    bin: Path
    owner: tuple[int, int] | None

    @property
    def pgdata(self) -> Path:
        """The folder that PostgreSQL calls PGDATA."""
        return self.home / "postgres"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.home / "postgres.log"

    @property
    def socket(self) -> Path:
        """The folder of the Unix socket, without the link that may lead there."""
        return (self.home / "socket").resolve()

    @property
    def url(self) -> str:
        """The libpq URL of the superuser, through the Unix socket."""
        host = quote(os.fsencode(self.socket), safe="")
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={host}&port={PORT}"

    def run(self, program: str, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        """Run one of the programs as the server's user, with the data_dir as its folder, for at most so many seconds.

        Names inside the data_dir are best given relative to it: pg_ctl hands them to a shell, unquoted.
        """
        as_user: dict[str, Any] = {}
        if self.owner:
            as_user = {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}
        # Nothing else of our environment: a server outlives who started it, and PGPORT and its like would bend it.
        environ = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        try:
            return subprocess.run(
                [self.bin / program, *arguments],
                check=False,
                cwd=self.home,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                umask=0o077,
                # What pg_ctl has begun it must see through: Ctrl-C in a terminal reaches us and not it.
                start_new_session=program == "pg_ctl",
                **as_user,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"{self.home}: {program} took over {seconds:.0f} s; see {self.log}") from None
        except OSError as error:
            who = pwd.getpwuid(self.owner[0]).pw_name if self.owner else "this user"
            raise EmbeddedError(
                f"{self.bin / program} cannot be run by {who} ({error.strerror}): "
                f"it needs read and execute rights on everything in {self.bin.parent}"
            ) from None

    def listening(self) -> bool:
        """Whether the server runs. A pid file may name a dead process or a stranger; a socket that answers cannot."""
        folder = self.socket
        try:
            status = folder.stat()
        except FileNotFoundError:
            return False
        # A short folder in the temp folder may be gone since, and its name taken by somebody else.
        uid = self.owner[0] if self.owner else os.geteuid()
        if status.st_uid != uid or status.st_mode & 0o077:
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            return client.connect_ex(os.fsencode(folder / f".s.PGSQL.{PORT}")) == 0

    def initialise(self, *, durable: bool) -> None:
        """Make postgres/ if it is missing, in one step: initdb elsewhere, then rename, so no half is ever trusted."""
        if self.pgdata.exists() and any(self.pgdata.iterdir()):
            return
        for left in self.home.glob("postgres.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.home))
        self._give(new)
        # Code point order: the same on every machine and after every upgrade, so no index needs rebuilding for it, and
        # LIKE 'x%' can use any of them. Upper and lower case still follow Unicode. PostgreSQL 17 brings such a locale
        # of its own; before, it is the C library's.
        locale = ["--locale=C.UTF-8"]
        if self.version() >= 17:
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # Passwords would guard nothing: the socket folder has mode 0700, who can enter it owns the data, or is root.
        auth = ["--auth-local=trust", "--auth-host=reject"]
        # initdb's sync costs a tenth of a second, and a power cut right after it costs nothing.
        sync = [] if durable else ["--no-sync"]
        names = [f"--pgdata={new.name}", f"--username={SUPERUSER}", "--encoding=UTF8", "--lc-messages=C"]
        try:
            done = self.run("initdb", "--data-checksums", *names, *locale, *auth, *sync, seconds=2 * START_SECONDS)
            if done.returncode:
                raise self._failure("initdb failed", done.stderr)
            new.rename(self.pgdata)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def start(self, options: Mapping[str, str]) -> None:
        """Start the server, with options over SETTINGS, and wait until it is ready, at most START_SECONDS."""
        self._check_version()
        self._write_settings({**options, "unix_socket_directories": str(self._new_socket_folder())})
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.rename(self.log.with_name("postgres.log.1"))
        end = time.monotonic() + REMNANT_SECONDS
        while (output := self._start_once()) is not None:
            if self.listening():
                raise self.still_starting()
            if not _REMNANT.search(output):
                raise self._failure("PostgreSQL did not start", output)
            if time.monotonic() > end:
                self._drop_pid_file(output)
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server in order: sessions are cut, everything is written."""
        folder = self.socket
        arguments = ["stop", "--silent", "--wait", f"--timeout={START_SECONDS}", "--mode=fast", "--pgdata=postgres"]
        done = self.run("pg_ctl", *arguments, seconds=START_SECONDS + 15)
        if done.returncode and self.listening():
            raise self._failure("PostgreSQL did not stop", done.stderr)
        if folder.parent != self.home:
            shutil.rmtree(folder, ignore_errors=True)

    def accepts(self) -> bool:
        """Whether the server takes a connection to the database, which is made where it is missing.

        False while it starts, recovers or stops, and when it has just gone: ask again.
        """
        try:
            psycopg.connect(self.url, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            reason = str(error)
        else:
            return True
        if f'database "{DATABASE}" does not exist' in reason:
            to = [f"--host={self.socket}", f"--port={PORT}", f"--username={SUPERUSER}", "--no-password"]
            done = self.run("createdb", *to, "--maintenance-db=postgres", DATABASE, seconds=START_SECONDS)
            if done.returncode:
                raise self._failure(f"the database {DATABASE} cannot be made", done.stderr)
        elif not re.search("the database system is|server closed the connection", reason) and self.listening():
            raise self._failure("PostgreSQL runs but takes no connection", reason)
        return False

    def still_starting(self) -> StillStartingError:
        """What to raise when START_SECONDS were not enough."""
        return StillStartingError(
            f"{self.home}: PostgreSQL is not ready after {START_SECONDS} s and goes on starting, perhaps it recovers "
            f"from a crash; see {self.log}, wait and try again"
        )

    def version(self) -> int:
        """The major version of the programs."""
        done = self.run("postgres", "--version", seconds=START_SECONDS)
        version = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
        if not version:
            last = (done.stderr.strip().splitlines() or ["no version"])[-1]
            raise EmbeddedError(f"{self.bin / 'postgres'} does not run on this machine: {last}")
        return int(version[1])

    def _check_version(self) -> None:
        try:
            data = int((self.pgdata / "PG_VERSION").read_bytes()[:100])
        except (FileNotFoundError, ValueError):
            raise self._damaged("PG_VERSION is missing or holds no version") from None
        programs = self.version()
        if data != programs:
            raise EmbeddedError(
                f"{self.pgdata} holds data of PostgreSQL {data} and the server is {programs}: set CRAFELY_POSTGRES_BIN "
                f"to the programs of a PostgreSQL {data}, or move the folder away to start with an empty one"
            )

    def _start_once(self) -> str | None:
        """Gives None when the server is ready, else what it and pg_ctl said."""
        with open(self.log, "ab", opener=open_no_link) as file:
            before = file.tell()
        self._give(self.log)
        # pg_ctl gives the server a session of its own, so Ctrl-C in a terminal reaches us and not it: requests are
        # finished before the database goes.
        arguments = ["start", "--silent", "--wait", f"--timeout={START_SECONDS}", "--pgdata=postgres"]
        settings = [f"--log={self.log.name}", "--options=-c config_file=postgres.conf"]
        done = self.run("pg_ctl", *arguments, *settings, seconds=START_SECONDS + 15)
        if done.returncode == 0:
            return None
        with open(self.log, "rb", opener=open_no_link) as file:
            file.seek(before)
            return file.read(MAX_LOG_BYTES).decode(errors="replace") + done.stderr

    def _drop_pid_file(self, output: str) -> None:
        """Remove a pid file that names a zombie or a stranger's process, as after a container was restarted.

        Nobody listens on the socket, so that is no server of ours. Should one be left all the same, then its shared
        memory, which PostgreSQL finds by the folder's inode, still keeps a second one from starting.
        """
        try:
            (self.pgdata / "postmaster.pid").unlink()
        except FileNotFoundError:
            raise self._failure("PostgreSQL did not start", output) from None

    def _write_settings(self, options: Mapping[str, str]) -> None:
        lines = [
            "# Written by crafely at every start. Change settings with ALTER SYSTEM, which is read after this file.",
            "include 'postgres/postgresql.conf'",
        ]
        values = {**SETTINGS, **options, "port": PORT, "unix_socket_permissions": "0700"}
        for name, value in values.items():
            quoted = value.replace("\\", "\\\\").replace("'", "''")
            lines.append(f"{name} = '{quoted}'")
        path = self.home / "postgres.conf"
        path.unlink(missing_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        self._give(path)

    def _new_socket_folder(self) -> Path:
        """An empty folder that only the server's user may enter, with a path that fits in a socket's address."""
        link = self.home / "socket"
        if link.is_symlink():
            link.unlink()
        shutil.rmtree(link, ignore_errors=True)
        if _fits(link):
            link.mkdir(mode=0o700)
            self._give(link)
            return link
        # mkdtemp's name is new and cannot be guessed: nobody else in the temp folder can have taken it first.
        shelters = (Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108 - see the line above
        shelter = next(path for path in shelters if _fits(path / "crafely-12345678"))
        folder = Path(tempfile.mkdtemp(prefix="crafely-", dir=shelter))
        self._give(folder)
        link.symlink_to(folder)
        return folder

    def _give(self, path: Path) -> None:
        """Hand what root made to the server's user."""
        if self.owner:
            os.chown(path, *self.owner, follow_symlinks=False)

    def _failure(self, what: str, output: str) -> EmbeddedError:
        """The line of output that tells why, with what to do about it."""
        if _FULL.search(output) or shutil.disk_usage(self.home).free < 1024 * 1024:
            return EmbeddedError(f"{self.home}: {os_advice(errno.ENOSPC)}")
        said = re.findall(r"(?:FATAL|PANIC|error): +(.*)", output) or [line for line in output.splitlines() if line][:1]
        reason = said[-1] if said else "no reason given"
        if "contains errors" in reason:  # the server names the setting in a line before
            reason = next(iter(re.findall(r"LOG: +(.*)", output)), reason)
        if _DAMAGE.search(output):
            return self._damaged(reason)
        more = f"; see {self.log}" if self.log.exists() else ""
        return EmbeddedError(f"{self.home}: {what}: {reason}{more}")

    def _damaged(self, reason: str) -> EmbeddedError:
        return EmbeddedError(
            f"{self.pgdata} is damaged ({reason}): restore a backup, or move the folder away to start with an empty one"
        )


def os_advice(code: int | None) -> str:
    """What to do when the operating system refuses with this errno."""
    match code:
        case errno.ENOSPC | errno.EDQUOT:
            return "the disk is full; free some space and start again"
        case errno.EACCES | errno.EPERM:
            return "no permission to write here; choose another CRAFELY_DATA_DIR"
        case errno.EEXIST | errno.ENOTDIR:
            return "this is a file where a folder must be; choose another CRAFELY_DATA_DIR"
        case _:
            return f"{os.strerror(code or errno.EIO)}; choose another CRAFELY_DATA_DIR"


def open_no_link(path: str, flags: int) -> int:
    """An opener for open(): as root in another user's folder, a link there must not lead us to a file of ours."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _fits(folder: Path) -> bool:
    # libpq reads a comma in a host as two hosts; other odd characters are quoted differently by each reader.
    plain = re.fullmatch(r"[\w/.@+=~ -]+", str(folder), re.ASCII)
    return plain is not None and len(str(folder / f".s.PGSQL.{PORT}")) <= MAX_SOCKET_BYTES
