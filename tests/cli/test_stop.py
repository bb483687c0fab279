"""How ``crafely serve`` ends, and what is left: nothing but the data."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from crafely.config import load
from crafely.db import embedded
from crafely.db.cluster import Cluster
from tests.cli.conftest import PROGRAM, Serving, environment, processes, until


def ctrl_c(serving: Serving) -> None:
    serving.ctrl_c()


def kill(serving: Serving) -> None:
    serving.process.send_signal(signal.SIGTERM)


def close_the_terminal(serving: Serving) -> None:
    os.killpg(serving.process.pid, signal.SIGHUP)


WAYS = [ctrl_c, kill, close_the_terminal]
Way = Callable[[Serving], None]


def postgres(folder: Path) -> psycopg.Connection:
    host = (folder / ".crafely" / "socket").resolve()
    return psycopg.connect(f"postgresql://postgres@/crafely?host={host}")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


def refuses(serving: Serving) -> bool:
    address = urlsplit(serving.address)
    with socket.socket() as client:
        return client.connect_ex((address.hostname, address.port)) != 0


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("way", WAYS)
def test_requests_in_flight_finish_and_new_ones_are_refused(
    copied: tuple[Path, str], threads: ThreadPoolExecutor, way: Way, workers: str
) -> None:
    folder, key = copied
    serving = Serving(folder, "--workers", workers).ready()
    with postgres(folder) as holder:
        holder.execute("lock table agents")
        answer: Future[tuple[int, object]] = threads.submit(serving.get, "/v1/agents", key)
        with postgres(folder) as observer:
            observer.autocommit = True
            waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock'"
            until(lambda: observer.execute(waits.encode()).fetchone(), "the request to wait for the lock")
        way(serving)
        until(lambda: refuses(serving), "new connections to be refused")
        assert serving.process.poll() is None
        assert not answer.done()
        holder.rollback()
        assert answer.result(timeout=30)[0] == 200
    assert serving.ended() == 0
    assert "Traceback" not in serving.err


def test_a_stop_while_it_starts_leaves_nothing_and_the_next_start_works(folder: Path) -> None:
    home = folder / ".crafely"
    moments: list[tuple[Way, Callable[[Serving], object]]] = [
        (ctrl_c, lambda _: list(home.glob("postgres.new-*/PG_VERSION"))),  # initdb writes
        (close_the_terminal, lambda _: (home / "postgres" / "postmaster.pid").exists()),  # PostgreSQL starts
        (ctrl_c, lambda _: (home / "postgres" / "postmaster.pid").exists()),
        (kill, lambda serving: "applying 0004" in serving.err),
    ]
    for way, come in moments:
        serving = Serving(folder)
        until(partial(come, serving), "the moment")
        way(serving)
        assert serving.ended() == 0
        assert "Traceback" not in serving.err
    Serving(folder).ready().stop()


@pytest.mark.parametrize("way", [ctrl_c, kill])
def test_workers_that_were_started_this_moment_hear_of_the_end(copied: tuple[Path, str], way: Way) -> None:
    serving = Serving(copied[0], "--workers", "8")
    until(lambda: "Ctrl-C stops it." in serving.out, "the workers to be forked")
    way(serving)
    assert serving.ended() == 0
    # What becomes of those that do not.
    assert "SIGKILL" not in serving.err


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("way", [ctrl_c, kill])
def test_impatience_leaves_nothing_behind(copied: tuple[Path, str], way: Way, workers: str) -> None:
    folder, _ = copied
    serving = Serving(folder, "--workers", workers).ready()
    while (folder / ".crafely" / "postgres" / "postmaster.pid").exists():
        way(serving)
        time.sleep(0.005)
    assert serving.ended() == 0
    assert "Traceback" not in serving.err


@pytest.mark.parametrize("step", ["start", "stop"])
def test_a_step_of_postgresql_that_has_begun_is_seen_through(
    copied: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder, _ = copied
    real = getattr(Cluster, step)
    seen_through = []

    def interrupted(cluster: Cluster, *arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(cluster, *arguments)
        seen_through.append(step)

    monkeypatch.setattr(Cluster, step, interrupted)
    settings = load(environment())
    with pytest.raises(KeyboardInterrupt), embedded.running(folder / ".crafely", postgres_bin=settings.postgres_bin):
        pass
    assert seen_through == [step]
    until(lambda: processes(folder) == {}, "PostgreSQL to be gone")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_nohup_keeps_it_when_the_terminal_is_closed(copied: tuple[Path, str], workers: str) -> None:
    folder, key = copied
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does: the program it starts inherits that
    try:
        serving = Serving(folder, "--workers", workers).ready()
    finally:
        signal.signal(signal.SIGHUP, before)
    close_the_terminal(serving)
    with pytest.raises(subprocess.TimeoutExpired):
        serving.process.wait(timeout=2)
    assert serving.get("/v1/me", key)[0] == 200
    serving.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_after_a_crash_the_next_start_has_the_data(copied: tuple[Path, str], workers: str) -> None:
    folder, key = copied
    crashed = Serving(folder, "--workers", workers).ready()
    crashed.process.kill()
    crashed.process.wait()
    # PostgreSQL goes on, and is used again; workers notice that they are alone.
    until(lambda: not [line for line in processes(folder).values() if PROGRAM in line], "the workers to end")
    assert processes(folder)
    serving = Serving(folder).ready()
    assert [agent["name"] for agent in serving.get("/v1/agents", key)[1]["data"]] == ["kept"]
    serving.stop()


def test_make_says_nothing_of_an_error_when_stopped(copied: tuple[Path, str]) -> None:
    folder, _ = copied
    makefile = Path(__file__).parents[2] / "Makefile"
    (folder / "bin").mkdir()
    (folder / "bin" / "crafely").symlink_to(PROGRAM)
    command = ["make", "--file", makefile, "--assume-old=./.run", "VENV=.", "run"]
    serving = Serving(folder, command=[str(part) for part in command], CRAFELY_PORT="0")
    serving.ready()
    serving.ctrl_c()
    # Make ends as whoever is interrupted does, so that its caller knows; it has nothing to say about it.
    assert serving.ended() == -signal.SIGINT
    assert "make" not in serving.out + serving.err
