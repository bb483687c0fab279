"""The command line as people use it: real processes, in folders of their own."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from crafely.cli import commands
from tests.conftest import ENCRYPTION_KEY, replica_of
from tests.db.conftest import stop_and_remove
from tests.pooler import between

PROGRAM = str(Path(sys.executable).with_name("crafely"))
SERVE = (PROGRAM, "serve", "--port", "0")
# Longer than anything here takes, also on a slow machine.
SECONDS = 60

Refused = Callable[..., str]


def environment(**variables: str) -> dict[str, str]:
    """Our environment, without settings of crafely but for these, and with the PostgreSQL of this run."""
    # Without make's, too: run by `make test`, another make would believe to be a part of that one, and say so.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CRAFELY_", "MAKE", "MFLAGS"))}
    programs = os.environ.get("CRAFELY_TEST_POSTGRES", "")
    if programs and not programs.startswith("postgres"):
        environ["CRAFELY_POSTGRES_BIN"] = programs
    if "CRAFELY_DATABASE_URL" in variables:
        environ["CRAFELY_ENCRYPTION_KEYS"] = ENCRYPTION_KEY
        if through := between.url(variables["CRAFELY_DATABASE_URL"]):
            environ["CRAFELY_POOLER_URL"] = through
        if replica := replica_of(variables["CRAFELY_DATABASE_URL"]):
            environ["CRAFELY_REPLICA_URL"] = replica
    return {**environ, **variables}


def crafely(
    folder: Path, *arguments: str, program: str = PROGRAM, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


class Command:
    """Runs a command in this process, on which it costs no start, and keeps what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        self._capsys = capsys
        self._words = words
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        try:
            code = commands.run([*self._words, *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def json(self, *arguments: str) -> Any:
        """What it prints for programs."""
        assert self(*arguments, "--json") == 0, self.err
        return json.loads(self.out)


def shell(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Runs lines as they are pasted into a terminal."""
    return subprocess.run(
        ["/bin/bash", "-eu"],
        input="\n".join(lines),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def until(holds: Callable[[], Any], what: str) -> Any:
    """Waits for something to become true, and gives it."""
    end = time.monotonic() + SECONDS
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {SECONDS} s: {what}"
        time.sleep(0.005)
    return found


def processes(folder: Path) -> dict[int, str]:
    """Every process that works in a folder or below it, with its command: crafely's, its workers and PostgreSQL's."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


class Serving:
    """``crafely serve --port 0``, in a folder and a process group of its own, as in a terminal."""

    def __init__(self, folder: Path, *arguments: str, command: Sequence[str] = SERVE, **variables: str) -> None:
        self.folder = folder
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=folder,
                # What one that was killed leaves behind goes with the folder.
                env=environment(**{"TMPDIR": str(folder), **variables}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def ready(self) -> "Serving":
        """Waits until it has printed all it prints, and /readyz answers 200."""
        until(lambda: "Ctrl-C stops it." in self.out or self.process.poll() is not None, "the server to start")
        assert self.process.poll() is None, self.out + self.err
        assert self.get("/readyz") == (200, {"status": "ready"})
        return self

    def line(self, pattern: str) -> str:
        """The first group of the only place in its output that matches."""
        (found,) = re.findall(pattern, self.out, re.MULTILINE)
        return str(found)

    @property
    def address(self) -> str:
        return self.line(r"^  API       (http://127\.0\.0\.1:\d+)$")

    @property
    def key(self) -> str:
        return self.line(r"^  KEY=(crf_live_\w+)$")

    def get(self, path: str, key: str = "") -> tuple[int, Any]:
        return self.request("GET", path, key)

    def request(self, method: str, path: str, key: str, body: object = None) -> tuple[int, Any]:
        """Asks on a connection of its own. Gives status and JSON."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=SECONDS)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = "json" in (response.headers["Content-Type"] or "")
        return response.status, json.loads(content) if is_json else content.decode()

    def ctrl_c(self) -> None:
        """What a terminal does: the signal goes to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def stop(self) -> None:
        """Ctrl-C, and nothing is left."""
        self.ctrl_c()
        assert self.ended() == 0

    def ended(self) -> int:
        """Waits for the end. Gives the exit code; nothing of it may be left."""
        code = self.process.wait(timeout=SECONDS)
        assert processes(self.folder) == {}
        return code


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder; what still runs in it at the end is killed."""
    with new_folder() as empty:
        yield empty


@pytest.fixture(scope="session")
def served() -> Iterator[Serving]:
    """A server that was started in an empty folder, for tests that leave it running."""
    with new_folder() as folder:
        serving = Serving(folder).ready()
        yield serving
        serving.stop()


@pytest.fixture(scope="session")
def made() -> Iterator[tuple[Path, str]]:
    """A folder that was served from, with an agent called «kept», and the key of its owner. Copy it: see ``copied``."""
    with new_folder() as folder:
        serving = Serving(folder).ready()
        key = serving.key
        agent = {"name": "kept", "instructions": "Stay."}
        assert serving.request("POST", "/v1/agents", key, agent)[0] == 201
        serving.stop()
        yield folder, key


@pytest.fixture
def copied(made: tuple[Path, str], folder: Path) -> tuple[Path, str]:
    """A copy of ``made`` that a test may use up, and the key."""
    subprocess.run(["/bin/cp", "-a", "--sparse=always", made[0] / ".crafely", folder], check=True)
    return folder, made[1]


@pytest.fixture
def refused(folder: Path) -> Refused:
    """Runs a command that must not do anything. Gives the one line that it says."""

    def run(*arguments: str, code: int = 1, **variables: str) -> str:
        done = crafely(folder, *arguments, **variables)
        assert (done.returncode, done.stdout) == (code, ""), done
        (line,) = done.stderr.splitlines()
        return line

    return run


@contextmanager
def new_folder() -> Iterator[Path]:
    """An empty folder; afterwards what runs in it is killed, and it is removed."""
    # Not pytest's own: as root, the server's user must be able to pass.
    folder = Path(tempfile.mkdtemp(prefix="crafely-test-")).resolve()
    try:
        yield folder
    finally:
        for pid in processes(folder):
            os.kill(pid, signal.SIGKILL)
        stop_and_remove(folder)
        shutil.rmtree(folder, ignore_errors=True)
