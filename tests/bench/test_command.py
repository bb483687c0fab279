"""``crafely bench`` as it is typed."""

import json
from argparse import Namespace
from pathlib import Path

import msgspec
import pytest
from rich.progress import Progress

from crafely.bench import BenchError
from crafely.bench.place import Place
from crafely.bench.report import Bound, Growth, Report
from crafely.bench.seed import seed
from crafely.cli import bench
from crafely.cli.commands import run
from crafely.config import Settings
from tests.bench.conftest import ROWS, facts
from tests.cli.conftest import Serving, crafely, new_folder

KEPT, BROKEN = Bound("kept", ">=", 1.0, 2.0), Bound("broken", ">=", 2.0, 1.0)


def chosen(report: Report | BenchError, **options: object) -> Namespace:
    def measure(*_: object) -> Report:
        if isinstance(report, BenchError):
            raise report
        return report

    return Namespace(**{"bench": measure, "json": None, "html": None, "svg": None, "check": False, **options})


@pytest.mark.parametrize(
    ("bounds", "check", "code"),
    [([KEPT], True, 0), ([KEPT, BROKEN], True, 1), ([BROKEN], False, 0), ([], True, 0)],
)
def test_check_decides_by_the_promises(
    bounds: list[Bound], check: bool, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(command="verify", facts=facts(), bounds=bounds)
    assert bench.run(chosen(report, check=check)) == code
    out = capsys.readouterr().out
    assert ("does not hold" in out) == (check and BROKEN in bounds)
    assert ("kept" in out) == (check and KEPT in bounds)


def test_a_bench_that_fails_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(chosen(BenchError("an answer was wrong"))) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "crafely: an answer was wrong"


def test_files_are_written(tmp_path: Path) -> None:
    growth = [Growth("lookup", rows, 3.0, 100.0) for rows in (10, 100)]
    report = Report(command="growth", facts=facts(), growth=growth)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "svg")}
    assert bench.run(chosen(report, **files)) == 0
    assert msgspec.json.decode(files["json"].read_bytes(), type=Report) == report
    assert files["html"].read_text().startswith("<!DOCTYPE html>")
    assert files["svg"].read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lookup", "--rows", "0"], "--rows: expected a whole number from 1"),
        (["lookup", "--seconds", "never"], "--seconds: expected seconds"),
        (["lookup", "--json", "/nowhere/report.json"], "--json: expected a file in a folder that exists"),
        (["growth", "--html", "/"], "--html: expected a file"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_measured(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["bench", *arguments])
    assert words in capsys.readouterr().err


def test_on_a_server_of_its_own_with_nothing_prepared() -> None:
    with new_folder() as folder:
        options = ["--max", "1000", "--rounds", "1", "--seconds", "0.1", "--html", "page.html", "--svg", "picture.svg"]
        done = crafely(folder, "bench", "growth", *options, "--check")
        # There is one size, which costs what it costs.
        assert (done.returncode, done.stderr) == (0, "")
        assert "lookup of a key" in done.stdout
        assert (folder / "picture.svg").read_text().startswith("<svg ")
        assert (folder / ".crafely").stat().st_mode & 0o007 in {0, 1}, "nobody else reads the data"
        assert list((folder / ".crafely").iterdir()) == [folder / ".crafely" / "bench"]


def test_somebody_elses_server(
    place: Place, settings: Settings, progress: Progress, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = place.database("served")
    key = seed(url, settings, progress, keys=ROWS).token(1)
    with new_folder() as folder:
        serving = Serving(folder, CRAFELY_DATABASE_URL=url).ready()
        report, options = tmp_path / "report.json", ["--rounds", "1", "--seconds", "0.1"]
        arguments = ["bench", "verify", "--url", serving.address, *options, "--json", str(report)]
        file = tmp_path / "key"
        file.write_text(f"{key}\n")
        arguments += ["--key-file", str(file)]
        assert run([*arguments, "--check"]) == 0, "nothing is promised of others"
        assert capsys.readouterr().err == ""
        found = json.loads(report.read_bytes())
        assert [side["name"] for side in found["sides"]] == ["warm", "unknown", "malformed", "bare"]
        assert all(side["rounds"][0]["count"] > 0 for side in found["sides"])
        file.write_text(key[:-1] + "!")
        assert run(arguments) == 1
        assert "does not find the key valid" in capsys.readouterr().err
        serving.stop()
