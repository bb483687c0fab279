"""``crafely monitor``: once for people and programs, and live on a terminal."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from crafely.cli import commands
from crafely.db import embedded
from tests.cli.conftest import PROGRAM, SECONDS, environment
from tests.db.harm import away


@pytest.fixture
def monitor(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs it here, and gives its exit code and what it says."""
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)

    def run(*arguments: str) -> tuple[int, str]:
        code = commands.run(["monitor", *arguments])
        said = capsys.readouterr()
        assert said.err == ""
        return code, said.out

    return run


def test_nothing_needs_anybody(monitor: Any, superuser: psycopg.Connection) -> None:
    superuser.execute("create extension pg_stat_statements")
    code, said = monitor("--once")
    assert code == 0
    assert "nothing needs you" in said
    for title in ("statements, since", "connections", "tables", "largest indexes"):
        assert title in said
    assert "monitor/overview" in said
    assert "usage_api_key_id_created_at_id_idx" in said


def test_what_needs_somebody_is_a_line_with_what_to_do(monitor: Any, superuser: psycopg.Connection) -> None:
    superuser.execute("create extension pg_stat_statements; create index twin on agents (user_id, created_at, id)")
    superuser.execute("create index again on agents (user_id, created_at, id)")
    code, said = monitor()
    assert code == 1
    [line] = [line for line in said.splitlines() if line.startswith("●")]
    assert "again on agents" in line
    assert line.rstrip().endswith("twin does not: drop index concurrently again")


def test_programs_get_everything(monitor: Any) -> None:
    code, said = monitor("--json")
    desk = json.loads(said)
    assert code == 1
    assert [alert["code"] for alert in desk["alerts"]] == ["no_statistics"]
    assert set(desk) == {"alerts", "overview", "queries", "indexes", "storage", "pool", "activity", "backup", "replica"}
    assert desk["overview"]["maxConnections"] > desk["overview"]["connections"] > 0


def test_where_the_schema_is_missing_it_says_so(
    empty_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRAFELY_DATABASE_URL", empty_database)
    assert commands.run(["monitor", "--once"]) == 1
    assert "run crafely migrate up" in capsys.readouterr().err


class Terminal:
    """A terminal with the program in it."""

    def __init__(self, url: str) -> None:
        self._own, theirs = pty.openpty()
        self.resize(40, 150)
        self.before = termios.tcgetattr(self._own)
        self.process = subprocess.Popen(
            [PROGRAM, "monitor"],
            env={**environment(CRAFELY_DATABASE_URL=url, TERM="xterm"), "COLUMNS": "", "LINES": ""},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # So that Ctrl-C reaches it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
        )
        os.close(theirs)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._own, keys)

    def wait(self, *texts: bytes) -> bytes:
        """Reads until all of these have come, each behind the one before; gives what was read since the last time."""
        end, read = time.monotonic() + SECONDS, b""
        while not self._in_order(read, texts):
            assert time.monotonic() < end, (texts, read[-2000:])
            if select.select([self._own], [], [], 0.1)[0]:
                read += os.read(self._own, 65536)
        return read

    @staticmethod
    def _in_order(read: bytes, texts: tuple[bytes, ...]) -> bool:
        for text in texts:
            _, found, read = read.partition(text)
            if not found:
                return False
        return True

    def ended(self) -> int:
        """Its exit code, when it has ended; what it writes on its way out must be read, or it would wait for us."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end, "goes on"
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._own, 65536)
                except OSError:  # nobody has it open any more
                    self.process.wait(SECONDS)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        os.close(self._own)


@pytest.fixture
def terminal(database_url: str) -> Iterator[Terminal]:
    terminal = Terminal(database_url)
    yield terminal
    terminal.close()


HEAD, TITLE = b"crafely monitor", b"connections"


def test_on_a_terminal_it_goes_on_until_q(terminal: Terminal) -> None:
    terminal.wait(b"\x1b[?1049h", HEAD, TITLE)
    # It draws again by itself, also on a terminal that is now small, and then large.
    terminal.resize(3, 20)
    small = terminal.wait(HEAD, HEAD)
    assert TITLE not in small.rpartition(HEAD)[2]
    terminal.resize(60, 200)
    terminal.wait(HEAD, TITLE)
    terminal.type(b"xq")
    assert terminal.ended() == 0
    # The screen is as it was, and what is typed can be seen again.
    assert b"\x1b[?1049l" in terminal.seen
    assert termios.tcgetattr(terminal._own) == terminal.before


@pytest.mark.parametrize("way", ["ctrl-c", "terminated"])
def test_to_be_stopped_is_no_error(terminal: Terminal, way: str) -> None:
    terminal.wait(HEAD, TITLE)
    if way == "ctrl-c":
        terminal.type(b"\x03")
    else:
        terminal.process.send_signal(signal.SIGTERM)
    assert terminal.ended() == 0
    assert b"Traceback" not in terminal.seen
    assert termios.tcgetattr(terminal._own) == terminal.before


def test_it_waits_for_a_database_that_has_gone(terminal: Terminal, server: embedded.Server, database_url: str) -> None:
    terminal.wait(HEAD, TITLE)
    with away(server, database_url):
        terminal.wait(b"tries again")
    terminal.wait(b"every 2 s")
    terminal.type(b"q")
    assert terminal.ended() == 0
