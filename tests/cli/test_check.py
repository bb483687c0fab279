"""``crafely check`` as people use it: on a scratch database that is made once, and on a checkout that may be broken."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crafely.cli.check import RULES
from tests.cli.conftest import PROGRAM, SECONDS, Refused, crafely, environment, new_folder, processes, until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checked() -> Iterator[Path]:
    """A folder in which the scratch database is kept; made as on a machine with neither terminal nor home."""
    kept = {name: value for name, value in environment().items() if name.startswith(("CRAFELY_", "PYTHON"))}
    bare = {**kept, "PATH": os.defpath}
    with new_folder() as folder:
        command = [PROGRAM, "check", "--json"]
        done = subprocess.run(command, cwd=folder, env=bare, capture_output=True, check=False, timeout=2 * SECONDS)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"[]\n", b""), done
        yield folder


@pytest.fixture
def copy(checked: Path) -> Iterator[Path]:
    """A checkout of our own, to break."""
    folder = checked / "copy"
    for name in ("crafely", "sql", "migrations"):
        shutil.copytree(ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)


def databases(folder: Path) -> int:
    """How many databases the server of the check has kept: postgres, its templates, crafely, and the scratch."""
    (base,) = folder.glob(".crafely/check/*/postgres/base")
    return len([path for path in base.iterdir() if path.name.isdecimal()])


def test_nothing_is_wrong_and_the_summary_says_so(checked: Path) -> None:
    before = databases(checked)

    done = crafely(checked, "check")

    assert (done.returncode, done.stdout) == (0, "")
    for rule in RULES:
        assert re.search(rf"^ +{rule} .* 0 *$", done.stderr, re.MULTILINE), done.stderr
    assert re.search(r"^\d+ statements of \d+ nouns checked in [\d.]+ s, 0 findings$", done.stderr, re.MULTILINE)
    assert databases(checked) == before
    assert processes(checked) == {}


def test_one_statement(checked: Path) -> None:
    done = crafely(checked, "check", "sql/api_keys/lookup.sql")

    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"1 statement checked in [\d.]+ s, 0 findings\n", done.stderr)


def test_a_name_that_does_not_exist(refused: Refused) -> None:
    line = refused("check", "threads/gte", code=2)
    assert line.startswith("crafely: threads/gte: no such statement; perhaps threads/get")


def test_file_and_line_of_a_statement_that_the_server_refuses(copy: Path, checked: Path) -> None:
    file = copy / "sql" / "threads" / "get.sql"
    text = file.read_text()
    line = text[: text.index("deleted_at is null")].count("\n") + 1
    file.write_text(text.replace("deleted_at is null", "deleted_on is null"))

    done = crafely(checked, "check", "threads/get", PYTHONPATH=str(copy))

    assert done.returncode == 1
    assert done.stdout.startswith(f"sql/threads/get.sql:{line}: prepare: as crafely_app: column ")
    assert "1 statement checked" in done.stderr


def test_findings_for_programs(copy: Path, checked: Path) -> None:
    file = copy / "sql" / "threads" / "get.sql"
    file.write_text(file.read_text().replace("from threads\n", "from  threads \n"))

    done = crafely(checked, "check", "threads/get", "--json", PYTHONPATH=str(copy))

    assert done.returncode == 1
    [finding] = json.loads(done.stdout)
    assert finding.keys() == {"path", "line", "rule", "problem"}
    assert (finding["path"], finding["line"], finding["rule"]) == ("sql/threads/get.sql", 7, "style")


def test_what_a_machine_can_know_is_written_into_headers(copy: Path, checked: Path) -> None:
    """«uses» and «not null» come back as they were, and a wrong one is mended."""
    before = {path: path.read_text() for path in sorted((copy / "sql").rglob("*.sql"))}
    for path, text in before.items():
        path.write_text(re.sub(r"^-- (uses|not null): .*\n", "", text, flags=re.MULTILINE))
    wrong = copy / "sql" / "threads" / "get.sql"
    wrong.write_text(before[wrong].replace("uses: threads_pkey", "uses: threads_storage_id_key"))

    done = crafely(checked, "check", "--fix-headers", PYTHONPATH=str(copy))

    assert (done.returncode, done.stdout) == (0, "")
    assert "sql/threads/get.sql: header written" in done.stderr
    for path, text in before.items():
        written, wanted = (set(re.findall(r"\w+", part)) for part in (path.read_text(), text))
        # One way into each table is written; a second one is its author's.
        seconds = {"api_keys_user_id_rotated_from_idx", "audit_seals_kind_id_idx"}
        assert wanted - seconds <= written <= wanted, path
        assert path.read_text().partition("\n-- uses")[0] == text.partition("\n-- uses")[0]


def test_a_grant_that_is_not_in_the_reviewed_file_is_found_and_written_down(copy: Path, checked: Path) -> None:
    grants = copy / "sql" / "grants.txt"
    before = grants.read_text()
    with_reason = next(line for line in before.splitlines() if "  -- because " in line and "crafely_backup" in line)
    grants.write_text(before.replace("crafely_app: select on threads\n", "").replace(f"{with_reason}\n", ""))

    found = crafely(checked, "check", PYTHONPATH=str(copy))
    written = crafely(checked, "check", "--write-grants", PYTHONPATH=str(copy))

    assert "grants: the database has «crafely_app: select on threads», and this file has not" in found.stdout
    # Both are in the file again; why the second is there, a person has to say.
    bare = with_reason.partition("  --")[0]
    assert grants.read_text() == before.replace(with_reason, bare)
    assert written.stdout.count("\n") == 1
    assert f"no statement needs it: revoke it in a migration, or say why it is there, behind «{bare}»" in written.stdout
    assert (found.returncode, written.returncode) == (1, 1)


def test_a_check_that_is_told_to_stop_leaves_no_server(folder: Path) -> None:
    with subprocess.Popen([PROGRAM, "check"], cwd=folder, env=environment()) as check:
        until(lambda: list(folder.glob(".crafely/check/*/postgres/postmaster.pid")), "PostgreSQL to start")
        check.send_signal(signal.SIGTERM)
        assert check.wait(timeout=SECONDS) == 130
    assert processes(folder) == {}
