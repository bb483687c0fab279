"""Log lines and metrics, also of several processes."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import Histogram

from crafely.api import telemetry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key crf_live_abc_DEF123 refused", "key (secret) refused"),
        ("jwt eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln!", "jwt (secret)!"),
        ("nothing here", "nothing here"),
        ("line\nbreak \ud800", "line\nbreak ?"),
    ],
)
def test_a_record_is_one_line_of_json_without_secrets(text: str, expected: str) -> None:
    record = logging.LogRecord(
        "crafely.x", logging.WARNING, "f.py", 1, text.encode(errors="replace").decode(), (), None
    )
    line = telemetry.JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "crafely.x", expected)


def test_what_json_cannot_hold_is_written_as_text() -> None:
    record = logging.LogRecord("x", logging.INFO, "f.py", 1, "%s", ("m",), None)
    record.fields = {"path": Path("/a"), "requestId": "r"}
    entry = json.loads(telemetry.JsonFormatter().format(record))
    assert (entry["path"], entry["requestId"]) == ("/a", "r")


def test_statements_and_pools_show() -> None:
    telemetry.observe_statement("tests/of_telemetry", 0.003)
    telemetry.observe_statement("tests/of_telemetry", 0.004, failed=True)
    telemetry.observe_pool("of_telemetry", {"pool_size": 10, "pool_available": 7, "requests_waiting": 2})
    text = telemetry.metrics().decode()
    assert 'crafely_statement_duration_seconds_count{statement="tests/of_telemetry"} 2.0' in text
    assert 'crafely_statement_errors_total{statement="tests/of_telemetry"} 1.0' in text
    assert 'crafely_pool_connections{pool="of_telemetry",state="busy"} 3.0' in text
    assert 'crafely_pool_connections{pool="of_telemetry",state="idle"} 7.0' in text
    assert 'crafely_pool_waiting{pool="of_telemetry"} 2.0' in text


def test_what_is_handed_over_is_what_observe_would_have_counted() -> None:
    seconds = [0, 0.0001, 0.0005, 0.00051, 0.001, 0.3, 30, 31, 1e9]
    histogram = Histogram("plain", "", buckets=telemetry._BUCKETS, registry=None)
    for one in seconds:
        histogram.observe(one)
        telemetry.requests.observe("GET", "/compared", 200, one)
        telemetry.observe_statement("tests/compared", one)

    def samples(family: Histogram, *labels: str) -> list[tuple[str, dict[str, str], float]]:
        child = family.labels(*labels) if labels else family
        return [(one.name, dict(one.labels), one.value) for one in child._child_samples() if one.name != "_created"]

    for _ in range(2):
        # The second time there is nothing left to hand over.
        telemetry.hand_over()
        assert samples(telemetry._durations, "/compared") == samples(histogram)
        assert samples(telemetry._statements, "tests/compared") == samples(histogram)
    assert 'route="/compared",status="200"} 9.0' in telemetry.metrics().decode()


_WORKER = """
import os, sys
from crafely.api import telemetry
telemetry.requests.observe("GET", "/x", 200, 0.001)
telemetry.requests.in_flight = ["one"]
if len(sys.argv) > 1:
    telemetry.mark_dead(int(sys.argv[1]))
    sys.stdout.write(telemetry.metrics().decode())
else:
    telemetry.hand_over()
    print(os.getpid())
"""


def test_the_metrics_of_several_workers_are_summed(tmp_path: Path) -> None:
    def worker(*arguments: str) -> str:
        environment = {
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
            "PYTHONPATH": str(Path(telemetry.__file__).parents[2]),
        }
        command = [sys.executable, "-c", _WORKER, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    first = worker().strip()
    # A third one has just made its file.
    (tmp_path / "counter_1.db").touch()
    text = worker(first)
    assert 'crafely_http_requests_total{method="GET",route="/x",status="200"} 2.0' in text
    # The first worker has ended: what it was doing no longer counts.
    assert "crafely_http_requests_in_flight 1.0" in text
