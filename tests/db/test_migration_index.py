"""Indexes outside a transaction, and the ends that nobody plans: the next run ends right, or says what to do."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from crafely.db import migrate
from crafely.db.migrate import MigrationError
from tests.db.test_migrate import ask, start_up, states, until, write

BUILD = "-- For the search.\n-- transactional: false\ncreate index concurrently a_note_idx on a (note);\n"
DROP = "-- Back to reading it all.\ndrop index concurrently a_note_idx;\n"
VALID = "select indisvalid from pg_index where indexrelid = to_regclass('a_note_idx')"
WAITING = """select pid from pg_stat_activity
    where wait_event_type = 'Lock' and application_name = 'crafely migrate' and datname = current_database()"""

BUILDING = "select pid from pg_stat_progress_create_index where datname = current_database()"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A table, and an index on it that is built without stopping anybody."""
    write(tmp_path, "0001.a", "-- One table.\ncreate table a (id int, note text);\n", "-- Back.\ndrop table a;\n")
    write(tmp_path, "0002.note", BUILD, DROP)
    return tmp_path


@contextmanager
def reader(url: str) -> Iterator[psycopg.Connection]:
    """An open transaction that has read the table: a concurrent build has to wait for its end."""
    with psycopg.connect(url) as connection:
        connection.execute("set transaction isolation level repeatable read")
        connection.execute("select * from a")
        yield connection


def ended(runner: "subprocess.Popen[str]") -> tuple[str, str]:
    return runner.communicate(timeout=60)


def test_a_build_that_was_killed_is_done_again(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files, to="0001.a")
    with reader(empty_database):
        runner = start_up(empty_database, files)
        until(lambda: ask(empty_database, WAITING) and ask(empty_database, VALID) == [(False,)])
        runner.send_signal(signal.SIGKILL)
        ended(runner)
        # The server notices that nobody waits for the answer.
        until(lambda: not ask(empty_database, WAITING))
    assert ask(empty_database, VALID) == [(False,)]
    assert states(empty_database, files)[-1] == ("0002.note", "pending")

    told: list[str] = []
    assert migrate.up(empty_database, files, on_progress=told.append) == ["0002.note"]
    assert told[-1] == "dropping the invalid index a_note_idx, which a run that was broken off left"
    assert ask(empty_database, VALID) == [(True,)]
    assert migrate.up(empty_database, files) == []


def test_a_build_that_cannot_get_its_lock_is_done_again(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files, to="0001.a")
    impatient = psycopg.conninfo.make_conninfo(empty_database, options="-c lock_timeout=200ms")
    with reader(empty_database), pytest.raises(MigrationError, match=r"^0002\.note\.sql:3: .*lock timeout") as caught:
        migrate.up(impatient, files)
    assert "it left a_note_idx invalid: mend the cause and run this again" in str(caught.value)
    assert migrate.up(impatient, files) == ["0002.note"]
    assert ask(empty_database, VALID) == [(True,)]


def test_a_lock_that_keeps_it_from_beginning_leaves_nothing(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files, to="0001.a")
    impatient = psycopg.conninfo.make_conninfo(empty_database, options="-c lock_timeout=200ms")
    with psycopg.connect(empty_database) as other:
        other.execute("lock table a in access exclusive mode")
        with pytest.raises(MigrationError, match=r"lock timeout; nothing is recorded, it is safe to run again$"):
            migrate.up(impatient, files)
    assert ask(empty_database, VALID) == []
    assert migrate.up(impatient, files) == ["0002.note"]


def test_doubles_are_named_as_long_as_they_are_there(empty_database: str, files: Path) -> None:
    write(files, "0002.note", BUILD.replace("index", "unique index", 1), DROP)
    migrate.up(empty_database, files, to="0001.a")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("insert into a (id, note) values (1, 'x'), (2, 'x')")
        for _ in range(2):
            with pytest.raises(
                MigrationError, match=r"^0002\.note\.sql:3: could not create unique index .* invalid: mend"
            ):
                migrate.up(empty_database, files)
            assert ask(empty_database, VALID) == [(False,)]
        connection.execute("delete from a where id = 2")
    assert migrate.up(empty_database, files) == ["0002.note"]
    assert ask(empty_database, VALID) == [(True,)]


def test_an_index_that_is_built_and_not_recorded_is_for_a_person_to_judge(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files, to="0001.a")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("create index a_note_idx on a (note)")
        with pytest.raises(
            MigrationError, match=r"^0002\.note\.sql:3: a_note_idx is there already, and valid"
        ) as caught:
            migrate.up(empty_database, files)
        assert "USING btree (note)" in str(caught.value)
        assert states(empty_database, files)[-1] == ("0002.note", "pending")
        # What it says to do.
        connection.execute("drop index concurrently a_note_idx")
    assert migrate.up(empty_database, files) == ["0002.note"]


def test_an_index_that_is_dropped_and_not_recorded_is_recorded(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("drop index a_note_idx")
    told: list[str] = []
    assert migrate.down(empty_database, files, on_progress=told.append) == ["0002.note"]
    assert told[-1].startswith("a_note_idx is gone already")
    assert states(empty_database, files)[-1] == ("0002.note", "pending")


def test_a_drop_that_was_broken_off_is_done_again(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    impatient = psycopg.conninfo.make_conninfo(empty_database, options="-c lock_timeout=200ms")
    with reader(empty_database), pytest.raises(MigrationError, match=r"lock timeout; nothing is recorded"):
        migrate.down(impatient, files)
    assert ask(empty_database, VALID) == [(False,)]
    assert states(empty_database, files)[-1] == ("0002.note", "applied")
    assert migrate.down(empty_database, files) == ["0002.note"]
    assert ask(empty_database, VALID) == []


def test_a_build_by_somebody_else_is_waited_for_by_hand(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files, to="0001.a")
    with reader(empty_database) as reading:
        code = "import sys, psycopg; psycopg.connect(sys.argv[1], autocommit=True).execute(sys.argv[2])"
        build = "create index concurrently a_note_idx on a (note)"
        other = subprocess.Popen([sys.executable, "-c", code, empty_database, build])
        until(lambda: ask(empty_database, VALID) == [(False,)] and ask(empty_database, BUILDING))
        with pytest.raises(MigrationError, match=r"^0002\.note\.sql:3: server process \d+ is building a_note_idx"):
            migrate.up(empty_database, files)
        reading.rollback()
    assert other.wait(timeout=60) == 0
    assert ask(empty_database, VALID) == [(True,)]
