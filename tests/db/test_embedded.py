"""The embedded server and who uses it: real processes, real kills."""

import fcntl
import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from crafely.db import cluster, embedded
from crafely.db.embedded import EmbeddedError, running, serving

DEBIAN = Path("/usr/lib/postgresql/15/bin")
OPTIONS = {"fsync": "off", "shared_buffers": "16MB"}
ROOT = os.geteuid() == 0
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
Execute = Callable[[str, str], list[tuple[object, ...]]]
Refused = Callable[..., str]
as_root = pytest.mark.skipif(not ROOT, reason="only root can mount a small disk or become another user")

# A process of its own that uses the server until its standard input ends, as far as "inside" goes.
USER = """
import os, signal, sys, time
from pathlib import Path
import psycopg
from crafely.db.embedded import running, serving

home, programs = Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None
with running(home, postgres_bin=programs, options={"fsync": "off", "shared_buffers": "16MB"}) as server:
    print(server.url, flush=True)
    INSIDE
"""
WAIT = "sys.stdin.read()"


class User:
    """A started USER process."""

    def __init__(self, home: Path, programs: Path | None = None, inside: str = WAIT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER.replace("INSIDE", inside), str(home), str(programs or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRON,
            start_new_session=True,
        )

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        self.process.communicate(timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.leave()


StartUser = Callable[..., User]


@pytest.fixture
def user() -> Iterator[StartUser]:
    users: list[User] = []

    def start(home: Path, programs: Path | None = None, inside: str = WAIT) -> User:
        users.append(User(home, programs, inside))
        return users[-1]

    yield start
    for left in users:
        if left.process.returncode is None:
            left.kill()


@pytest.fixture(scope="module", params=[None, DEBIAN], ids=["wheel", "debian"])
def programs(request: pytest.FixtureRequest) -> Path | None:
    folder: Path | None = request.param
    if folder and not folder.exists():
        pytest.skip(f"no PostgreSQL in {folder}")
    return folder


def alive(home: Path) -> bool:
    return embedded._find(home, None).listening()


def server_pid(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def kill_server(home: Path) -> None:
    os.kill(server_pid(home), signal.SIGKILL)


def test_fresh_start_then_data_survive_a_restart(empty: Path, programs: Path | None, execute: Execute) -> None:
    with running(empty, postgres_bin=programs, options=OPTIONS) as server:
        execute(server.url, "create table kept (value text)")
        execute(server.url, "insert into kept values ('here')")

        def show(setting: str) -> object:
            return execute(server.url, f"show {setting}")[0][0]

        assert show("listen_addresses") == ""
        assert show("timezone") == show("log_timezone") == "UTC"
        assert show("server_encoding") == "UTF8"
        assert show("data_checksums") == "on"
        assert show("shared_buffers") == "16MB"
        assert show("fsync") == "off"
        # Code point order, and upper case beyond ASCII.
        assert execute(server.url, "select 'Z' < 'a', upper('é')") == [(True, "É")]
        execute(server.url, "create extension pg_stat_statements")
        execute(server.url, "select 1 as one")
        seen = execute(server.url, "select calls from pg_stat_statements where query = 'select $1 as one'")
        assert seen == [(1,)]
        assert all((server.bin / name).is_file() for name in ("psql", "pg_dump", "pgbench"))
    assert not alive(empty)
    with running(empty, postgres_bin=programs, options=OPTIONS) as server:
        assert execute(server.url, "select value from kept") == [("here",)]


def test_the_server_stays_while_anyone_uses_it(shared: Path, user: StartUser, execute: Execute) -> None:
    first = user(shared)
    url = first.read()
    second = user(shared)
    assert second.read() == url
    pid = server_pid(shared)
    assert first.leave() == 0
    assert execute(url, "select value from kept") == [("before",)]
    assert server_pid(shared) == pid
    assert second.leave() == 0
    assert not alive(shared)


def test_a_killed_user_leaves_a_server_that_the_next_one_uses_and_stops(shared: Path, user: StartUser) -> None:
    first = user(shared)
    first.read()
    pid = server_pid(shared)
    first.kill()
    assert alive(shared)
    with running(shared, options=OPTIONS):
        assert server_pid(shared) == pid
    assert not alive(shared)


def test_a_killed_server_recovers_at_once(empty: Path, programs: Path | None, execute: Execute) -> None:
    with running(empty, postgres_bin=programs, options=OPTIONS) as server:
        execute(server.url, "create table kept as select 'after' as value")
        busy = [psycopg.connect(server.url) for _ in range(20)]
        pid = server_pid(empty)
        kill_server(empty)
        with running(empty, postgres_bin=programs, options=OPTIONS) as again:
            assert server_pid(empty) != pid
            assert execute(again.url, "select value from kept") == [("after",)]
        # The first user is still inside, and has its database again.
        assert execute(server.url, "select value from kept") == [("after",)]
        for connection in busy:
            connection.close()
    assert not alive(empty)


def test_a_pid_file_that_names_a_stranger_does_not_keep_the_server_down(
    home: Path, monkeypatch: pytest.MonkeyPatch, execute: Execute
) -> None:
    monkeypatch.setattr(cluster, "REMNANT_SECONDS", 0.3)
    owner = (home / "postgres").stat().st_uid
    stranger = subprocess.Popen(["/bin/sleep", "60"], user=owner if ROOT else None)
    pid_file = home / "postgres" / "postmaster.pid"
    pid_file.write_text(f"{stranger.pid}\n{home}/postgres\n1700000000\n5432\n{home}/socket\n\n  1 1\nready\n")
    shutil.chown(pid_file, owner)
    try:
        with running(home, options=OPTIONS) as server:
            assert execute(server.url, "select value from kept") == [("before",)]
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_several_processes_start_on_a_fresh_folder(empty: Path, user: StartUser, execute: Execute) -> None:
    users = [user(empty) for _ in range(4)]
    urls = {each.read() for each in users}
    assert len(urls) == 1
    assert execute(urls.pop(), "select 1") == [(1,)]
    assert not list(empty.glob("postgres.new-*"))
    assert [each.leave() for each in users] == [0, 0, 0, 0]
    assert not alive(empty)


def test_a_crash_during_initdb_leaves_nothing_that_is_trusted(empty: Path, user: StartUser, execute: Execute) -> None:
    crashing = user(empty)
    deadline = time.monotonic() + 30
    while not list(empty.glob("postgres.new-*/PG_VERSION")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    crashing.kill()
    assert list(empty.glob("postgres.new-*"))
    assert not (empty / "postgres").exists()
    with running(empty, options=OPTIONS) as server:
        assert execute(server.url, "select 1") == [(1,)]
    assert not list(empty.glob("postgres.new-*"))


def test_ctrl_c_reaches_the_program_and_not_the_server(shared: Path, user: StartUser, execute: Execute) -> None:
    inside = """
    try:
        print("busy", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print(psycopg.connect(server.url).execute("select value from kept").fetchone()[0], flush=True)
    """
    program = user(shared, inside=inside.strip())
    program.read()
    assert program.read() == "busy"
    # What a terminal does: the signal goes to the whole group.
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.read() == "before"
    assert program.leave() == 0
    assert not alive(shared)
    assert "received fast shutdown request" in (shared / "postgres.log").read_text()


def test_a_forked_worker_that_ends_stops_nothing(shared: Path, user: StartUser, execute: Execute) -> None:
    inside = """
    with serving(home, "http://fork"):
        worker = os.fork()
        if not worker:
            sys.exit()
        os.waitpid(worker, 0)
        print(psycopg.connect(server.url).execute("select value from kept").fetchone()[0], flush=True)
        sys.stdin.read()
    """
    master = user(shared, inside=inside.strip())
    master.read()
    assert master.read() == "before"
    with pytest.raises(EmbeddedError, match="http://fork"), serving(shared, "http://other"):
        pass
    assert master.leave() == 0
    assert not alive(shared)


def test_whose_folder_was_replaced_does_not_stop_the_new_server(home: Path, user: StartUser, execute: Execute) -> None:
    first = user(home)
    first.read()
    old = server_pid(home)
    shutil.rmtree(home)
    try:
        with running(home, options=OPTIONS) as server:
            assert first.leave() == 0
            assert execute(server.url, "select 1") == [(1,)]
    finally:
        with suppress(ProcessLookupError):  # it may have noticed that its files are gone
            os.kill(old, signal.SIGKILL)


def test_only_one_program_serves_a_folder(shared: Path, user: StartUser) -> None:
    inside = f'with serving(home, "http://127.0.0.1:8000"): print("serving", flush=True); {WAIT}'
    other = user(shared, inside=inside)
    other.read()
    assert other.read() == "serving"
    with pytest.raises(EmbeddedError) as caught, serving(shared, "http://127.0.0.1:8001"):
        pass
    assert str(caught.value) == (
        f"crafely is already running here: http://127.0.0.1:8000 (pid {other.process.pid}); "
        "stop it with Ctrl-C there, or choose another CRAFELY_DATA_DIR"
    )
    other.kill()
    for _ in range(2):
        with serving(shared, "http://127.0.0.1:8001"), running(shared, options=OPTIONS):
            pass


def test_a_path_too_long_for_a_socket_gets_a_short_private_one(empty: Path, user: StartUser, execute: Execute) -> None:
    deep = empty / ("d" * 60) / 'odd, "$(touch x)` ü' / ("e" * 60)
    with running(deep, options=OPTIONS) as server:
        folder = (deep / "socket").resolve()
        assert folder.parent == Path(tempfile.gettempdir())
        assert folder.stat().st_mode & 0o777 == 0o700
        assert execute(server.url, "select 1") == [(1,)]
        other = user(deep)
        assert other.read() == server.url
        assert other.leave() == 0
    assert not folder.exists()


@pytest.mark.parametrize("squatter_is", ["open to all", pytest.param("another user's", marks=as_root)])
def test_a_squatter_on_the_short_socket_folder_is_not_believed(home: Path, squatter_is: str, execute: Execute) -> None:
    squat = home.parent / "squat"
    squat.mkdir(mode=0o700)
    shutil.rmtree(home / "socket")
    (home / "socket").symlink_to(squat)
    if squatter_is == "open to all":
        shutil.chown(squat, (home / "postgres").stat().st_uid)
        squat.chmod(0o777)
    else:
        shutil.chown(squat, "nobody")
    listener = "import socket; s = socket.socket(1); s.bind('.s.PGSQL.5432'); s.listen(); print(flush=True); input()"
    command = [sys.executable, "-c", listener]
    with subprocess.Popen(command, cwd=squat, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as squatter:
        assert squatter.stdout
        squatter.stdout.readline()
        with running(home, options=OPTIONS) as server:
            assert str(squat) not in server.url
            assert execute(server.url, "select value from kept") == [("before",)]
        squatter.communicate(b"\n")


def test_a_slow_start_is_reported_left_alone_and_found_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, execute: Execute, refused: Refused
) -> None:
    hold = home.parent / "hold"
    hold.touch()
    home.parent.chmod(0o711)
    signal_file = home / "postgres" / "recovery.signal"
    signal_file.touch()
    shutil.chown(signal_file, (home / "postgres").stat().st_uid)
    slow = {"hot_standby": "off", "restore_command": f"while test -e {hold}; do sleep 0.1; done; false"}
    for module in (cluster, embedded):
        monkeypatch.setattr(module, "START_SECONDS", 1)
    assert "PostgreSQL is not ready after 1 s and goes on starting" in refused(home, **slow)
    pid = server_pid(home)
    assert "PostgreSQL is not ready after 1 s and goes on starting" in refused(home)
    for module in (cluster, embedded):
        monkeypatch.setattr(module, "START_SECONDS", 30)
    hold.unlink()
    with running(home, options=OPTIONS) as server:
        assert server_pid(home) == pid
        assert execute(server.url, "select value from kept") == [("before",)]
    assert not alive(home)


def test_an_endless_turn_of_somebody_else(shared: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setattr(embedded, "TURN_SECONDS", 0.2)
    with embedded._lock_file(shared, "server.lock") as turn:
        embedded._lock(turn, fcntl.LOCK_EX)
        assert "others have been starting or stopping the database" in refused(shared)


# Imports as we are, then becomes the user: the interpreter itself may stand where that user cannot go.
BECOME = """
import os, pwd, sys, encodings.idna
from pathlib import Path
import psycopg
from crafely.db.embedded import EmbeddedError, running
entry = pwd.getpwnam("nobody")
os.setgroups([]); os.setgid(entry.pw_gid); os.setuid(entry.pw_uid)
home = Path(sys.argv[1])
try:
    with running(home, options={"fsync": "off"}) as server:
        print(psycopg.connect(server.url).execute("select 41 + 1").fetchone()[0])
        print((home / "postgres").owner())
except EmbeddedError as error:
    print(error)
"""


def become(home: Path) -> list[str]:
    command = [sys.executable, "-c", BECOME, str(home)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRON).stdout.splitlines()


@as_root
def test_an_ordinary_user_and_then_root_in_the_same_folder(empty: Path, execute: Execute) -> None:
    empty.parent.chmod(0o755)
    empty.mkdir(mode=0o700)
    shutil.chown(empty, "nobody")
    assert become(empty) == ["42", "nobody"]
    with running(empty, options=OPTIONS) as server:
        assert execute(server.url, "select 1") == [(1,)]
    # Root took nothing away from its owner.
    assert become(empty) == ["42", "nobody"]


@as_root
def test_a_folder_that_cannot_be_written(shared: Path) -> None:
    shared.parent.chmod(0o755)
    (line,) = become(shared)
    assert str(shared) in line
    assert "no permission to write here; choose another CRAFELY_DATA_DIR" in line


def test_the_server_never_runs_as_root_and_the_folder_is_closed(shared: Path) -> None:
    with running(shared, options=OPTIONS):
        owner = Path(f"/proc/{server_pid(shared)}").owner()
        assert owner == (embedded.SYSTEM_USER if ROOT else getpass.getuser())
        assert (shared / "socket").stat().st_mode & 0o777 == 0o700
        assert (shared / "postgres").stat().st_mode & 0o777 == 0o700
        assert (shared / "postgres.log").stat().st_mode & 0o077 == 0
