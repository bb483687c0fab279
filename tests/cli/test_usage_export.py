"""``crafely usage export``: a month's records in a file, all of them and no others, or no file at all."""

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crafely.db.backup import Table, month, tables
from tests.cli.conftest import Command
from tests.cli.test_usage import INSERT_KEY
from tests.store.test_usage_retention import make, month_before, partition

OLD = month_before(4)
MONTH = f"{OLD:%Y-%m}"
# The last moment before the month, its first, its last and the first one after it (UTC).
TIMES = (
    f"{month_before(5)}T12:00:00Z",
    f"{OLD}T00:00:00Z",
    f"{OLD.replace(day=28)}T23:59:59.999999Z",
    f"{month_before(3)}T00:00:00Z",
)


@pytest.fixture
def export(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], superuser: psycopg.Connection
) -> Command:
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    # A session's own zone says nothing about where a month begins.
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    superuser.execute(INSERT_KEY)
    make(superuser, OLD)
    for number, time in enumerate(TIMES):
        superuser.execute(
            "insert into usage (id, user_id, api_key_id, created_at, cost, model, metadata)"
            """ values (%s, 'alice', 'key_1', %s, 0.000000000001, 'a "b",\nc', '{"é": [1, "\\n"]}')""",
            [f"use_{number}", time],
        )
    return Command(capfd, "usage", "export", "--month")


def read(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_no_month_is_dropped_between_looking_and_writing(
    export: Command, tmp_path: Path, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(connection: psycopg.Connection[Any]) -> list[Table]:
        # It has just been asked whether the month is there.
        with pytest.raises(psycopg.errors.LockNotAvailable):
            superuser.execute("select drop_usage_month(%s)", [OLD])
        return tables(connection)

    monkeypatch.setattr(month, "tables", drop)
    assert export(MONTH, "--output", str(tmp_path / "out.csv"), "--json") == 0
    assert json.loads(export.out)["rows"] == 2


def test_a_month_is_written_whole_and_nothing_else(
    export: Command, tmp_path: Path, superuser: psycopg.Connection
) -> None:
    file = tmp_path / "out.csv.gz"
    assert export(MONTH, "--output", str(file), "--json") == 0
    report = json.loads(export.out)
    content = file.read_bytes()
    assert report == {
        "month": MONTH,
        "rows": 2,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "file": str(file),
    }
    rows = read(gzip.decompress(content).decode())
    assert [row["id"] for row in rows] == ["use_1", "use_2"]
    first = rows[0]
    assert (first["cost"], first["model"]) == ("0.000000000001", 'a "b",\nc')
    assert json.loads(first["metadata"]) == {"é": [1, "\n"]}
    assert first["created_at"] == f"{OLD} 00:00:00+00"
    # COPY takes it back as it is.
    superuser.execute("create table again (like usage)")
    with superuser.cursor() as cursor, cursor.copy("copy again from stdin (format csv, header)") as copy:
        copy.write(gzip.decompress(content))
    same = "select count(*) from again natural join (select id, cost, model, metadata, created_at from usage) as u"
    assert superuser.execute(same).fetchone() == (2,)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o077 == 0


def test_without_a_file_it_goes_to_standard_output(export: Command) -> None:
    assert export(MONTH) == 0
    assert [row["id"] for row in read(export.out)] == ["use_1", "use_2"]
    digest = hashlib.sha256(export.out.encode()).hexdigest()
    assert export.err == f"2 records of {MONTH}, {len(export.out.encode())} bytes, SHA-256 {digest}\n"


def test_a_month_that_is_gone_takes_no_files_place(
    export: Command, tmp_path: Path, superuser: psycopg.Connection
) -> None:
    superuser.execute("select drop_usage_month(%s)", [OLD])
    kept = tmp_path / "kept.csv"
    kept.write_text("what was exported in time")
    assert export(MONTH, "--output", str(kept)) == 1
    assert export.err == f"crafely: the records of {MONTH} are gone: retention has dropped them\n"
    assert kept.read_text() == "what was exported in time"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.csv"]


def test_what_fails_on_the_way_leaves_what_was_there(
    export: Command, tmp_path: Path, superuser: psycopg.Connection
) -> None:
    """A value that cannot be read, in the midst of the others."""
    kept = tmp_path / "kept.csv"
    kept.write_text("the first export")
    superuser.execute("revoke select on usage from crafely_backup")
    assert export(MONTH, "--output", str(kept)) == 1
    (line,) = export.err.splitlines()
    assert line.endswith("permission denied for table usage")
    assert kept.read_text() == "the first export"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.csv"]


def test_a_month_without_records_is_a_line_of_names(export: Command) -> None:
    assert export("2001-02") == 0
    assert export.out.count("\n") == 1
    assert export.out.startswith("id,created_at,api_key_id,user_id,")
    assert export.err.startswith("0 records of 2001-02, ")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["2026-13"], "--month: expected a month, such as 2026-01"),
        (["2026-1"], "--month: expected a month, such as 2026-01"),
        (["0000-01"], "--month: expected a month, such as 2026-01"),
        (["9999-12"], "--month: expected an earlier one"),
        (["2026-01", "--json"], "--json: goes with --output"),
        (["2026-01", "--output", "/nowhere/file.csv"], "--output: expected a file in a folder that exists"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(export: Command, options: list[str], named: str) -> None:
    assert export(*options) == 2
    (line,) = export.err.splitlines()
    assert named in line


def test_a_partition_is_named_as_the_month(superuser: psycopg.Connection) -> None:
    """What retention drops is what was exported: both say it by the month's first day."""
    make(superuser, OLD)
    bounds = superuser.execute(
        "select pg_get_expr(relpartbound, oid) from pg_class where relname = %s", [partition(OLD)]
    ).fetchone()
    assert bounds is not None
    assert f"'{OLD} 00:00:00+00'" in bounds[0]
