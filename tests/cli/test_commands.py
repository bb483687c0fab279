"""The other commands, and what all have in common."""

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crafely import __version__
from crafely.cli.commands import _parser
from tests.cli.conftest import PROGRAM, Refused, Serving, crafely, environment

ROOT = Path(__file__).parents[2]


def parsers(parser: argparse.ArgumentParser, *names: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command, down to the last, with its parser."""
    yield names, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from parsers(below, *names, name)


def test_version(folder: Path) -> None:
    assert crafely(folder, "--version").stdout == f"crafely {__version__}\n"


def test_help_of_every_command_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    commands = dict(parsers(_parser()))
    assert {("serve",), ("keys", "create"), ("migrate", "up"), ("check",), ("openapi",)} < set(commands)
    for names, parser in commands.items():
        with pytest.raises(SystemExit, match="0"):
            _parser().parse_args([*names, "--help"])
        shown = capsys.readouterr().out
        for action in parser._actions:
            assert action.help or action.choices, (names, action)
            assert all(option in shown for option in action.option_strings), (names, action)


def test_a_command_that_does_not_exist(refused: Refused) -> None:
    assert "invalid choice: 'sevre'" in refused("sevre", code=2)


def test_openapi_prints_what_the_server_answers(served: Serving) -> None:
    done = crafely(served.folder, "openapi")
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed["openapi"].startswith("3.1")
    assert served.get("/openapi.json") == (200, printed)


def test_a_reader_that_has_enough_is_no_error(folder: Path) -> None:
    line = f'set -o pipefail; {PROGRAM} openapi | head -c 1; echo " ${{PIPESTATUS[0]}}"'
    done = subprocess.run(["/bin/bash", "-c", line], capture_output=True, text=True, check=True, env=environment())
    assert (done.stdout, done.stderr) == ("{ 0\n", "")


@pytest.fixture
def copy(folder: Path) -> Path:
    """A checkout of our own, to break."""
    for name in ("crafely", "sql", "migrations"):
        shutil.copytree(ROOT / name, folder / "copy" / name)
    return folder / "copy"


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_file_that_does_not_fit_its_signature_is_one_line(copy: Path, refused: Refused, command: str) -> None:
    file = copy / "sql" / "threads" / "get.sql"
    file.write_text(file.read_text().replace(":user_id", ":owner"))
    assert re.match(r"crafely: sql/threads/get\.sql:\d+: ", refused(command, PYTHONPATH=str(copy)))
