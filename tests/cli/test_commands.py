"""The other commands, and what all have in common."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crafely import __version__
from crafely.cli.commands import _parser
from tests.cli.conftest import PROGRAM, Refused, Serving, crafely, environment, processes, until

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


def test_check_finds_nothing_wrong_and_needs_neither_terminal_nor_home(folder: Path) -> None:
    kept = {name: value for name, value in environment().items() if name.startswith(("CRAFELY_", "PYTHON"))}
    bare = {**kept, "PATH": os.defpath}
    done = subprocess.run([PROGRAM, "check", "--json"], cwd=folder, env=bare, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"[]\n"), done


def test_check_of_a_name_that_does_not_exist(refused: Refused) -> None:
    line = refused("check", "threads/nothing", code=2)
    assert line == "crafely: threads/nothing: no such statement; they are named like threads/list_for_agent"


@pytest.fixture
def copy(folder: Path) -> Path:
    """A checkout of our own, to break."""
    for name in ("crafely", "sql", "migrations"):
        shutil.copytree(ROOT / name, folder / "copy" / name)
    return folder / "copy"


def test_check_names_file_and_line_of_a_statement_that_the_server_refuses(copy: Path, folder: Path) -> None:
    file = copy / "sql" / "threads" / "get.sql"
    text = file.read_text()
    line = text[: text.index("deleted_at is null")].count("\n") + 1
    file.write_text(text.replace("deleted_at is null", "deleted_on is null"))
    done = crafely(folder, "check", "threads/get", PYTHONPATH=str(copy))
    assert done.returncode == 1
    assert done.stdout.startswith(f"sql/threads/get.sql:{line}: prepare: as crafely_app: column ")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_file_that_does_not_fit_its_signature_is_one_line(copy: Path, refused: Refused, command: str) -> None:
    file = copy / "sql" / "threads" / "get.sql"
    file.write_text(file.read_text().replace(":user_id", ":owner"))
    assert re.match(r"crafely: sql/threads/get\.sql:\d+: ", refused(command, PYTHONPATH=str(copy)))


def test_a_check_that_is_told_to_stop_leaves_no_server(folder: Path) -> None:
    with subprocess.Popen([PROGRAM, "check"], cwd=folder, env=environment(TMPDIR=str(folder))) as check:
        until(lambda: list(folder.glob("crafely-check-*/postgres/postmaster.pid")), "PostgreSQL to start")
        check.send_signal(signal.SIGTERM)
        assert check.wait(timeout=60) == 130
    assert processes(folder) == {}
    assert list(folder.glob("crafely-check-*")) == []
