"""``crafely serve --workers``: several processes that look like one."""

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from prometheus_client.mmap_dict import MmapedDict
from psycopg.conninfo import conninfo_to_dict

from crafely.db.embedded import Server
from tests.cli.conftest import PROGRAM, Serving, processes, until

ROUTE = 'route="/v1/me"'


@pytest.fixture(scope="module")
def metrics() -> Iterator[Path]:
    """The folder in which workers leave their metrics."""
    with tempfile.TemporaryDirectory(prefix="crafely-test-") as folder:
        yield Path(folder)


@pytest.fixture
def three(copied: tuple[Path, str], metrics: Path) -> Iterator[tuple[Serving, str]]:
    """Three workers, and a key."""
    serving = Serving(copied[0], "--workers", "3", TMPDIR=str(metrics)).ready()
    yield serving, copied[1]
    serving.stop()
    # What they kept there is gone with them.
    assert list(metrics.iterdir()) == []


def workers(serving: Serving) -> set[int]:
    return {pid for pid, line in processes(serving.folder).items() if PROGRAM in line} - {serving.process.pid}


def counted(serving: Serving) -> float:
    """How many requests for ROUTE the metrics show."""
    status, text = serving.get("/metrics")
    assert status == 200, serving.err[-3000:]
    counts = re.findall(rf"^crafely_http_requests_total{{.*{ROUTE}.*}} (\S+)$", text, re.MULTILINE)
    return sum(map(float, counts))


def who_counted(folder: Path) -> set[str]:
    """The pids that have answered ROUTE, from the files that they keep their counters in."""
    return {
        file.stem.removeprefix("counter_")
        for file in folder.glob("crafely-metrics-*/counter_*.db")
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call] # theirs
        if value and "crafely_http_requests_total" in key and "/v1/me" in key
    }


def ask(serving: Serving, key: str, times: int) -> None:
    with ThreadPoolExecutor(max_workers=16) as pool:
        statuses = set(pool.map(lambda _: serving.get("/v1/me", key)[0], range(times)))
    assert statuses == {200}


def test_all_work_metrics_add_them_up_and_a_dead_one_is_replaced(three: tuple[Serving, str], metrics: Path) -> None:
    serving, key = three
    asked = 0
    before = until(lambda: (found := workers(serving)) and len(found) == 3 and found, "three workers")

    def spread() -> bool:
        nonlocal asked
        ask(serving, key, times=60)
        asked += 60
        return len(who_counted(metrics)) > 1

    until(spread, "a second worker to answer")
    assert counted(serving) == asked

    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(workers(serving) - {victim}) == 3, "another worker")
    assert before - {victim} < workers(serving)
    ask(serving, key, times=60)
    assert counted(serving) == asked + 60
    # Of gauges only those of the living count: a pool of a dead worker has no connections.
    assert not list(metrics.glob(f"crafely-metrics-*/gauge_live*_{victim}.db"))


def test_a_worker_that_ends_by_itself_takes_nothing_along(three: tuple[Serving, str], metrics: Path) -> None:
    serving, key = three
    before = until(lambda: (found := workers(serving)) and len(found) == 3 and found, "three workers")
    victim = min(before)
    os.kill(victim, signal.SIGTERM)
    until(lambda: victim not in workers(serving) and len(workers(serving)) == 3, "another worker")
    ask(serving, key, times=60)
    assert counted(serving) == 60


def test_logs_are_json_lines(three: tuple[Serving, str]) -> None:
    serving, key = three
    ask(serving, key, times=10)
    lines = [line for line in serving.err.splitlines() if not line.startswith("starting PostgreSQL")]
    routes = [json.loads(line).get("route") for line in lines]
    assert routes.count("/v1/me") == 10


def test_workers_that_cannot_start_any_more_end_it_with_a_clear_line(
    folder: Path, metrics: Path, server: Server, database_url: str
) -> None:
    serving = Serving(folder, "--workers", "2", CRAFELY_DATABASE_URL=database_url, TMPDIR=str(metrics)).ready()
    # A worker that has run a statement has started.
    until(lambda: len(list(metrics.glob("crafely-metrics-*/histogram_*.db"))) == 2, "both workers to start")
    with psycopg.connect(server.url, autocommit=True) as connection:
        name = conninfo_to_dict(database_url)["dbname"]
        connection.execute(f"alter database {name} with allow_connections false".encode())
    for worker in workers(serving):
        os.kill(worker, signal.SIGKILL)
    assert serving.ended() == 1
    entries = [json.loads(line) for line in serving.err.splitlines()]
    lines = {entry["message"] for entry in entries if entry["level"] == "critical"}
    assert len(lines) == 1
    assert lines.pop().startswith("this worker cannot start: cannot use the database at ")
