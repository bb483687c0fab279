"""``crafely serve --workers``: several processes that look like one."""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from prometheus_client.mmap_dict import MmapedDict
from psycopg.conninfo import conninfo_to_dict

from crafely.db.embedded import Server
from tests.cli.conftest import PROGRAM, Serving, new_folder, processes, until

ROUTE = 'route="/v1/me"'


@pytest.fixture(scope="module")
def metrics() -> Iterator[Path]:
    """The folder in which workers leave their metrics."""
    with tempfile.TemporaryDirectory(prefix="crafely-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def three(metrics: Path) -> Iterator[Serving]:
    """A server with three workers."""
    with new_folder() as folder:
        serving = Serving(folder, "--workers", "3", TMPDIR=str(metrics)).ready()
        until(lambda: len(workers(serving)) == 3, "three workers")
        yield serving
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


def settled(serving: Serving) -> float:
    """The same, when every worker has handed over what it had counted."""
    time.sleep(2.5)
    return counted(serving)


def who_counted(folder: Path) -> set[str]:
    """The pids that have answered ROUTE, from the files that they keep their counters in."""
    return {
        file.stem.removeprefix("counter_")
        for file in folder.glob("crafely-metrics-*/counter_*.db")
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call] # theirs
        if value and "crafely_http_requests_total" in key and "/v1/me" in key
    }


def ask(serving: Serving, times: int) -> None:
    with ThreadPoolExecutor(max_workers=16) as pool:
        statuses = set(pool.map(lambda _: serving.get("/v1/me", serving.key)[0], range(times)))
    assert statuses == {200}


def test_all_work_and_metrics_add_them_up(three: Serving, metrics: Path) -> None:
    asked = 0

    def spread() -> bool:
        nonlocal asked
        ask(three, times=60)
        asked += 60
        return len(who_counted(metrics)) > 1

    until(spread, "a second worker to answer")
    # The others hand over what they counted once a second.
    until(lambda: counted(three) == asked, "all to be counted")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_ends_is_replaced_and_takes_nothing_along(
    three: Serving, metrics: Path, number: signal.Signals
) -> None:
    asked = settled(three)
    before = workers(three)
    victim = min(before)
    os.kill(victim, number)
    until(lambda: victim not in workers(three) and len(workers(three)) == 3, "another worker")
    assert before - {victim} < workers(three)
    ask(three, times=60)
    until(lambda: counted(three) == asked + 60, "all to be counted")
    # Of gauges only those of the living count: a pool of a dead worker has no connections.
    assert not list(metrics.glob(f"crafely-metrics-*/gauge_live*_{victim}.db"))


def test_workers_that_count_alone_say_so(three: Serving) -> None:
    [line] = [line for line in three.err.splitlines() if "rate limits: each of 3 workers counts alone" in line]
    assert json.loads(line)["level"] == "warning"


def test_logs_are_json_lines(three: Serving) -> None:
    said = len(three.err)
    ask(three, times=10)

    def routes() -> list[str]:
        whole = three.err[said : three.err.rfind("\n") + 1]
        return [json.loads(line)["route"] for line in whole.splitlines()]

    # An answer goes out some milliseconds before its line.
    until(lambda: routes().count("/v1/me") == 10, "ten lines")
    assert set(routes()) <= {"/v1/me", "/metrics"}
    for line in three.err.splitlines():
        assert line.startswith(("starting PostgreSQL", "applying ")) or json.loads(line)


def test_workers_that_cannot_start_any_more_end_it_with_a_clear_line(
    folder: Path, server: Server, database_url: str
) -> None:
    serving = Serving(folder, "--workers", "2", CRAFELY_DATABASE_URL=database_url).ready()
    # A worker that has run a statement has started.
    until(lambda: len(list(folder.glob("crafely-metrics-*/histogram_*.db"))) == 2, "both workers to start")
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
