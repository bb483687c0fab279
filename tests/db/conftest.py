"""Folders with an embedded server to use up. Every one is stopped and removed."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from crafely.db import embedded
from crafely.db.embedded import EmbeddedError, running

OPTIONS = {"fsync": "off", "shared_buffers": "16MB"}

Execute = Callable[[str, str], list[tuple[object, ...]]]


@pytest.fixture(scope="session")
def options() -> dict[str, str]:
    """Settings of a server that is thrown away."""
    return dict(OPTIONS)


@pytest.fixture(scope="session")
def execute() -> Execute:
    """Runs one statement at a url, gives its rows."""

    def run(url: str, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    return run


def stop_and_remove(top: Path) -> None:
    for folder in top.iterdir():
        if (folder / "postgres.conf").exists() and embedded._find(folder, None).listening():
            pid = (folder / "postgres" / "postmaster.pid").read_text().split()[0]
            os.kill(int(pid), signal.SIGKILL)
    # A server that was killed this moment may still write.
    for _ in range(10):
        with suppress(OSError):
            shutil.rmtree(top)
            return


@pytest.fixture
def empty() -> Iterator[Path]:
    """A data_dir that does not exist yet."""
    # Not pytest's own folder: as root, a second test run would close it to the server's user under our feet.
    top = Path(tempfile.mkdtemp(prefix="crafely-test-"))
    yield top / "data"
    stop_and_remove(top)


@pytest.fixture(scope="session")
def shared(execute: Execute) -> Iterator[Path]:
    """A data_dir whose server is stopped, for tests that leave it as they found it."""
    top = Path(tempfile.mkdtemp(prefix="crafely-test-"))
    with running(top / "data", options=OPTIONS) as server:
        execute(server.url, "create table kept (value text)")
        execute(server.url, "insert into kept values ('before')")
    yield top / "data"
    stop_and_remove(top)


@pytest.fixture
def home(shared: Path, empty: Path) -> Path:
    """A copy of shared that a test may break."""
    subprocess.run(["/bin/cp", "-a", "--sparse=always", shared, empty], check=True)
    return empty


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Starts a server that must not start, gives the line it answers."""

    def start(home: Path, **options: str) -> str:
        with pytest.raises(EmbeddedError) as caught, running(home, options={**OPTIONS, **options}):
            pass
        line = str(caught.value)
        assert "\n" not in line
        assert str(home) in line
        return line

    return start
