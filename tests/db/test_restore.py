"""A database made of a backup: all of it, as it was, or none of it."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db import embedded, migrate, snapshot
from crafely.db.backup import folder, stream
from crafely.db.backup import restore as restoring
from crafely.db.backup.folder import Backup, BackupError
from crafely.db.backup.restore import restore
from crafely.db.drift import drift
from crafely.keyring import Keyring
from tests.db.rows import OLD, everything, fill
from tests.db.test_backup import OFF, RING, copied, flipped, make, rewrite


@pytest.fixture(scope="module")
def filled(module_database: str) -> str:
    fill(module_database)
    return module_database


@pytest.fixture(scope="module")
def made(filled: str, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    return make(filled, tmp_path_factory.mktemp("backups"))


@pytest.fixture(scope="module")
def clear(filled: str, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    return make(filled, tmp_path_factory.mktemp("backups"), OFF)


def objects(url: str) -> list[snapshot.Object]:
    with migrate.reading(url) as connection:
        return snapshot.take(connection)


def is_empty(url: str) -> bool:
    """Nothing is there but what PostgreSQL brings; the roles are the whole server's."""
    with psycopg.connect(url) as connection:
        (count,) = connection.execute(
            "select (select count(*) from pg_class where relnamespace = 'public'::regnamespace)"
            " + (select count(*) from pg_proc where pronamespace = 'public'::regnamespace)"
        ).fetchone() or (None,)
    return bool(count == 0)


def test_everything_comes_back_as_it_was(
    server: embedded.Server, filled: str, made: Backup, empty_database: str
) -> None:
    told: list[tuple[str, int, int]] = []
    restored = restore(empty_database, made.path, ring=RING, on_progress=lambda *words: told.append(words))

    wanted = everything(filled)
    assert f"usage_y{OLD:%Y}m{OLD:%m}" in wanted
    assert everything(empty_database) == wanted
    assert objects(empty_database) == objects(filled)
    assert drift(empty_database, server.url).differences == []
    assert restored.manifest == made.manifest
    assert restored.seconds > 0
    assert all(0 <= done <= total for _, done, total in told)
    assert {what.split()[0] for what, *_ in told} == {"checking", "loading", "comparing", "gathering"}


def test_the_database_goes_on_from_there(made: Backup, empty_database: str) -> None:
    restore(empty_database, made.path, ring=RING)
    with psycopg.connect(empty_database) as connection:
        (last,) = connection.execute("select max(id) from audit_log").fetchone() or (None,)
        assert last is not None
        connection.execute("update agents set name = 'x' where id = 'agnt_1'")
        rows = connection.execute("select id - %s, action, new from audit_log where id > %s", [last, last]).fetchall()
        assert rows == [(1, "update", {"name": "x"})]
        # Statistics are there at once.
        assert connection.execute("select reltuples from pg_class where relname = 'api_keys'").fetchone() == (3,)
        # The owner is again under the rules for everybody.
        connection.execute("create role crafely_nobody; alter table agents owner to crafely_nobody")
        connection.execute("grant all on schema public to crafely_nobody; set local role crafely_nobody")
        assert connection.execute("select count(*) from agents").fetchone() == (0,)
        connection.rollback()


def test_one_in_clear_comes_back_too(filled: str, clear: Backup, empty_database: str) -> None:
    restore(empty_database, clear.path, ring=OFF)
    assert everything(empty_database) == everything(filled)


def test_an_owner_that_is_no_superuser_restores(
    server: embedded.Server, filled: str, made: Backup, empty_database: str
) -> None:
    name = conninfo_to_dict(empty_database)["dbname"]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create role crafely_restorer login")
        connection.execute(f"alter database {name} owner to crafely_restorer".encode())
    try:
        restore(make_conninfo(empty_database, user="crafely_restorer"), made.path, ring=RING)
        assert everything(empty_database) == everything(filled)
        with psycopg.connect(empty_database) as connection:
            assert connection.execute(
                "select distinct pg_get_userbyid(relowner) from pg_class where relname in ('agents', 'usage')"
            ).fetchall() == [("crafely_restorer",)]
    finally:
        with psycopg.connect(empty_database, autocommit=True) as connection:
            connection.execute("reassign owned by crafely_restorer to current_user; drop owned by crafely_restorer")
            connection.execute("drop role crafely_restorer")


FULL = [
    "create table notes (text text)",
    "create view notes as select 1 as one",
    "create sequence notes",
    "create schema theirs; create table theirs.notes (text text)",
]


@pytest.mark.parametrize("statement", FULL)
def test_a_database_with_anything_in_it_is_refused(made: Backup, empty_database: str, statement: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute(statement.encode())
    with pytest.raises(BackupError, match=r"is not empty \(it has (public|theirs)\.notes\): restore into a new one"):
        restore(empty_database, made.path, ring=RING)
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("select to_regclass('agents')").fetchone() == (None,)


def test_extensions_may_be_there(made: Backup, empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("create extension pg_stat_statements")
    restore(empty_database, made.path, ring=RING)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_byte_is_found_before_the_database_is_touched(
    made: Backup, clear: Backup, empty_database: str, tmp_path: Path, sealed: bool
) -> None:
    backup, ring = (made, RING) if sealed else (clear, OFF)
    for file in sorted(backup.path.iterdir()):
        path = copied(backup, tmp_path)
        text = file.read_bytes()
        (path / file.name).write_bytes(flipped(text, len(text) * 2 // 3))
        with pytest.raises(BackupError, match=rf"{file.name} is not as it was written"):
            restore(empty_database, path, ring=ring)
        shutil.rmtree(path)
    assert is_empty(empty_database)


def replaced(path: Path, file: str, text: bytes, ring: Keyring) -> None:
    """A table's file with other content, and a manifest that knows its sum; by somebody who has the keys."""
    manifest = folder.read(path, ring)
    (path / file).write_bytes(text)
    tables = [
        msgspec.structs.replace(table, file_bytes=len(text), file_sha256=hashlib.sha256(text).hexdigest())
        if table.file == file
        else table
        for table in manifest.tables
    ]
    rewrite(path, ring, tables=tables)


def rows_of(path: Path, file: str, ring: Keyring) -> bytes:
    manifest = folder.read(path, ring)
    return b"".join(stream.unpack(folder.blocks(path / file), ring, folder.label(manifest.id, file)))


def packed(path: Path, file: str, rows: bytes, ring: Keyring) -> bytes:
    return b"".join(stream.pack([rows], ring, folder.label(folder.read(path, ring).id, file)))


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a row less": (lambda rows: rows[rows.index(b"\n") + 1 :], "the table agents holds 1 rows, and 2 were backed up"),
    "another value": (lambda rows: rows.replace(b"bob", b"eve"), "the table agents holds other rows than"),
    "no row of it": (lambda _: b"nonsense\n", "the database refused: missing data for column"),
    "refused by a constraint": (lambda rows: rows.replace(b"bob", b""), "the database refused: new row for relation"),
}


@pytest.mark.parametrize("name", WRONG)
def test_whatever_fails_leaves_the_database_empty(made: Backup, empty_database: str, tmp_path: Path, name: str) -> None:
    """What no checksum shows is found by the database, or by reading back; then the next attempt works."""
    change, message = WRONG[name]
    path, file = copied(made, tmp_path), "agents.copy.gz.sealed"
    replaced(path, file, packed(path, file, change(rows_of(path, file, RING)), RING), RING)
    with pytest.raises(BackupError, match=message) as caught:
        restore(empty_database, path, ring=RING)
    assert "bob" not in str(caught.value)
    assert is_empty(empty_database)
    with psycopg.connect(empty_database) as connection:
        # Somebody may be a member of it.
        assert connection.execute("select from pg_roles where rolname = 'crafely_backup'").fetchone() is not None
    if name == "another value":
        restore(empty_database, made.path, ring=RING)


def test_a_file_in_clear_is_not_taken_for_a_sealed_one(made: Backup, empty_database: str, tmp_path: Path) -> None:
    path, file = copied(made, tmp_path), "agents.copy.gz.sealed"
    replaced(path, file, packed(path, file, rows_of(path, file, RING), RING), RING)
    text = b"".join(stream.pack([rows_of(path, file, RING)], OFF, ""))
    replaced(path, file, text, RING)
    with pytest.raises(BackupError, match="is in clear"):
        restore(empty_database, path, ring=RING)
    assert is_empty(empty_database)


def test_a_file_of_another_backup_is_refused(made: Backup, filled: str, empty_database: str, tmp_path: Path) -> None:
    """Both are sealed with the same key."""
    path = copied(made, tmp_path)
    other = make(filled, tmp_path / "other")
    replaced(path, "agents.copy.gz.sealed", (other.path / "agents.copy.gz.sealed").read_bytes(), RING)
    with pytest.raises(BackupError, match="is damaged, cut off, or another one"):
        restore(empty_database, path, ring=RING)
    assert is_empty(empty_database)


def test_what_the_database_makes_of_the_rows_is_read_back(
    made: Backup, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triggers that did not rest would write the trail a second time, and no file shows that."""
    monkeypatch.setattr(restoring, "rest", lambda _: ([], []))
    with pytest.raises(BackupError, match=r"the table audit_log was given \d+ rows, and \d+ were backed up"):
        restore(empty_database, made.path, ring=RING)
    assert is_empty(empty_database)


def test_who_stops_it_leaves_the_database_empty(made: Backup, empty_database: str) -> None:
    def stop(what: str, *_: Any) -> None:
        if what == "comparing usage":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(empty_database, made.path, ring=RING, on_progress=stop)
    assert is_empty(empty_database)


def test_it_is_there_at_once_and_not_bit_by_bit(made: Backup, empty_database: str) -> None:
    seen: list[int] = []

    def look(what: str, *_: Any) -> None:
        if not what.startswith("comparing"):
            return
        with psycopg.connect(empty_database, options="-c lock_timeout=100") as connection:
            try:
                seen.extend(connection.execute("select count(*) from packages").fetchone() or ())
            except psycopg.errors.LockNotAvailable:
                # It may be locked meanwhile, but whoever reads it does not see a half.
                seen.append(0)

    restore(empty_database, made.path, ring=RING, on_progress=look)
    assert made.manifest is not None
    assert seen == [0] * len(made.manifest.tables)


def test_migrations_that_this_release_does_not_know(made: Backup, empty_database: str, tmp_path: Path) -> None:
    assert made.manifest is not None
    known = made.manifest.migrations
    first, *rest = known
    for migrations, message in (
        ({**known, "9999.later": "0" * 64}, "made with the migration 9999.later, which is unknown to this release"),
        ({**known, first: "0" * 64}, f"made with the migration {first}, in another text than this release"),
        ({name: known[name] for name in rest}, "its migrations are not the first ones of this release"),
        ({}, "its migrations are not the first ones of this release"),
    ):
        path = copied(made, tmp_path)
        rewrite(path, RING, migrations=migrations)
        with pytest.raises(BackupError, match=message):
            restore(empty_database, path, ring=RING)
        shutil.rmtree(path)
    assert is_empty(empty_database)


def test_one_of_an_earlier_release_comes_back_as_it_was_and_can_be_migrated(
    empty_database: str, database_url: str, tmp_path: Path
) -> None:
    known = list(migrate.expected())
    # The first whose databases can be backed up.
    earlier = next(name for name in known if name.endswith(".backup-history"))
    if later := len(known) - known.index(earlier) - 1:
        migrate.down(database_url, steps=later)
    fill(database_url)
    made = make(database_url, tmp_path)
    wanted = everything(database_url)

    restore(empty_database, made.path, ring=RING)

    assert everything(empty_database) == wanted
    assert [one.id for one in migrate.status(empty_database) if one.state == "applied"][-1] == earlier
    migrate.up(empty_database)


def test_months_of_a_manifest_are_months(made: Backup, empty_database: str, tmp_path: Path) -> None:
    assert made.manifest is not None
    for month in ("agents_y2020m01", "usage_y2020m13", "usage; drop table x"):
        path = copied(made, tmp_path)
        tables = [
            msgspec.structs.replace(t, partitions=[month]) if t.name == "usage" else t for t in made.manifest.tables
        ]
        rewrite(path, RING, tables=tables)
        with pytest.raises(BackupError, match="is no month of the table usage"):
            restore(empty_database, path, ring=RING)
        shutil.rmtree(path)
    assert is_empty(empty_database)


def test_tables_that_migrations_do_not_make(made: Backup, empty_database: str, tmp_path: Path) -> None:
    assert made.manifest is not None
    path = copied(made, tmp_path)
    *tables, last = made.manifest.tables
    rewrite(path, RING, tables=tables)
    (path / last.file).unlink()
    with pytest.raises(BackupError, match=f"the table {last.name} is not the same in the backup and in its migrations"):
        restore(empty_database, path, ring=RING)
    assert is_empty(empty_database)
