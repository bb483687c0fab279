"""Costs that are measured, and predictions that are held against measurements."""

import json
from pathlib import Path
from xml.dom import minidom

import msgspec
import psycopg
import pytest
from rich.progress import Progress

from crafely.bench import BenchError, capacity, processes
from crafely.bench.capacity_lab import Lab, Spent
from crafely.bench.capacity_terms import Costs
from crafely.bench.place import Place
from crafely.bench.report import Report
from crafely.bench.rounds import Plan
from crafely.bench.seed import seed
from crafely.cli.commands import run
from crafely.config import Settings
from tests.bench.conftest import ROWS, decoded


@pytest.fixture(scope="module")
def measured(place: Place) -> Report:
    """One short run: the figures are worth little, but each of them must be there."""
    with psycopg.connect(place.url) as connection:
        if processes.program(connection.info.backend_pid) is None:
            pytest.skip("its server must run on this machine")
    options = capacity.Options(rows=ROWS, plan=Plan(rounds=1, seconds=0.3))
    return capacity.bench(place, Settings(), options, Progress(disable=True))


def test_every_cost_is_measured(measured: Report) -> None:
    assert decoded(measured) == measured
    assert measured.capacity is not None
    costs = msgspec.structs.asdict(measured.capacity.costs)
    # What a batch does besides its events is a difference, which noise may swallow in so short a time.
    assert all(value > 0 for name, value in costs.items() if not name.startswith(("event_", "batch_")))
    assert costs["event_worker"] + costs["batch_worker"] > 0
    assert costs["hit_worker"] <= costs["read_worker"] < costs["cold_worker"]
    # Bytes are what they are, however short: a record with its indexes, a key, what a worker opens.
    assert 400 < costs["usage_disk"] < 1500
    assert 100 < costs["ledger_disk"] < 1000
    assert 700 < costs["key_disk"] < 3000
    assert 200 < costs["daily_disk"] < 600
    assert 200 < costs["audit_disk"] < 2000
    assert 500 < costs["single_wal"] < 10_000
    assert 500 < costs["key_memory"] < 5000
    assert 8 <= costs["connections"] <= 25
    assert 30e6 < costs["worker_memory"] < 300e6


def test_predictions_are_held_against_measurements(measured: Report) -> None:
    assert measured.capacity is not None
    points = measured.capacity.points
    assert len(points) >= 4
    # Of processor time the kernel counts hundredths of a second.
    assert all(point.predicted > 0 and point.measured > 0 for point in points if point.counted)
    assert [bound.wanted for bound in measured.bounds] == [
        capacity.BYTES if point.counted else capacity.CORES for point in points
    ]
    assert [bound.seen for bound in measured.bounds] == [point.factor for point in points]
    # In no time too short: bytes were counted.
    usage = next(point for point in points if point.name.endswith("usage on disk"))
    assert usage.factor < 2


def test_a_prediction_that_is_off_is_a_promise_broken(measured: Report) -> None:
    assert measured.capacity is not None
    one = msgspec.structs.replace(measured.capacity.points[0], predicted=1.0, measured=1.41)
    answered = msgspec.structs.replace(measured.capacity, points=[one])
    assert [bound.holds for bound in capacity.report(answered, measured).bounds] == [False]
    right = msgspec.structs.replace(answered, points=[msgspec.structs.replace(one, measured=1.39)])
    assert [bound.holds for bound in capacity.report(right, measured).bounds] == [True]


def test_other_loads_are_answered_without_measuring(
    measured: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"report.{kind}" for kind in ("before", "json", "html", "svg")}
    files["before"].write_bytes(msgspec.json.encode(measured))
    arguments = ["bench", "capacity", "--from", str(files["before"]), "--lookups", "1000000", "--events", "1000000"]
    arguments += ["--event-batch", "1000", "--keys", "100000000", "--zipf", "0", "--cores", "32"]
    arguments += [word for kind in ("json", "html", "svg") for word in (f"--{kind}", str(files[kind]))]
    assert run(arguments) == 0
    found = json.loads(files["json"].read_bytes())["capacity"]
    assert found["load"]["lookups"] == found["load"]["events"] == 1_000_000
    assert found["machine"]["cores"] == 32
    assert found["answer"]["machines"] > 10
    assert found["costs"] == json.loads(files["before"].read_bytes())["capacity"]["costs"]
    assert files["svg"].read_text().startswith("<svg ")
    html, out = files["html"].read_text(), capsys.readouterr().out
    for words in ("What ends first", "Assumed, not measured", "Measured, for one", "100,000,000 keys of 10,000,000"):
        assert words in html
        assert words in out
    assert html.count("<svg") >= 2, "the loads, and the rates that were measured"
    document = minidom.parseString(html.replace("<!DOCTYPE html>", "").encode())  # noqa: S318 - our own page
    assert any(one.getAttribute("class") == "mark" for one in document.getElementsByTagName("circle"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keys", "0"], "--keys: expected a whole number from 1 to 1000000000"),
        (["--keys", "1e6"], "--keys: expected a whole number"),
        (["--lookups", "-1"], "--lookups: expected a number from 0 to 100000000"),
        (["--events", "nan"], "--events: expected a number from 0"),
        (["--event-batch", "1001"], "--event-batch: expected a whole number from 1 to 1000"),
        (["--retention-months", "0"], "--retention-months: expected a whole number from 1 to 1200"),
        (["--zipf", "3.1"], "--zipf: expected a number from 0 to 3"),
        (["--hit-rate", "1.1"], "--hit-rate: expected a number from 0 to 1"),
        (["--hit-rate", "0.9", "--zipf", "1"], "--zipf: not allowed with argument --hit-rate"),
        (["--cores", "0"], "--cores: expected a whole number from 1 to 1024"),
        (["--utilization", "1"], "--utilization: expected a number from 0.1 to 0.95"),
        (["--keys", "10", "--users", "11"], "--users: expected no more than --keys"),
        (["--lookups", "0", "--events", "0"], "--lookups, --events: expected one of them to be more than 0"),
        (["--from", "/nowhere"], "--from: expected a file that bench capacity --json wrote"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_measured(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["bench", "capacity", *arguments])
    assert words in capsys.readouterr().err


def test_another_reports_file_has_no_costs(
    measured: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verify.json"
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(measured, capacity=None)))
    with pytest.raises(SystemExit, match="2"):
        run(["bench", "capacity", "--from", str(file)])
    assert "--from: expected a file that bench capacity --json wrote" in capsys.readouterr().err


def test_a_server_elsewhere_is_not_measured(
    place: Place, settings: Settings, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place.database("elsewhere")
    found = seed(url, settings, progress, keys=10)
    # As it looks from another machine: the process of that number is none, or another program.
    for seen in (None, "sshd"):
        monkeypatch.setattr(processes, "program", lambda _, seen=seen: seen)
        with psycopg.connect(url) as connection, pytest.raises(BenchError, match="must run on this machine"):
            Lab(connection, found)


def test_too_short_a_measurement_is_refused(place: Place, settings: Settings, progress: Progress) -> None:
    url = place.database("elsewhere")
    found = seed(url, settings, progress, keys=10)
    with psycopg.connect(url) as connection:
        lab = Lab(connection, found)
        names = (
            capacity.HIT,
            capacity.READ,
            capacity.COLD,
            capacity.SINGLE,
            capacity.FEW,
            capacity.MANY,
            capacity.TOUCH,
        )
        done = Spent(lookups=1, events=1, touches=1, workers=0.01, server=0.01, seconds=1)
        lab.spent = {name: [Spent(), done] for name in names}
        assert isinstance(capacity._costs(lab, (1, 1, 1), capacity._Memory()), Costs)
        lab.spent[capacity.TOUCH] = [done, Spent()]
        with pytest.raises(BenchError, match="measure for longer, --seconds"):
            capacity._costs(lab, (1, 1, 1), capacity._Memory())
