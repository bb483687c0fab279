"""Making backups: one moment, all rows, and nothing that looks complete and is not."""

import errno
import gzip
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crafely import keyring
from crafely.db import backup
from crafely.db.backup import folder, stream
from crafely.db.backup.folder import Backup, BackupError
from crafely.db.session import DatabaseUnavailableError
from crafely.keyring import Keyring
from tests.db.rows import everything, fill

RING = keyring.parse(keyring.generate("first"))
OFF = keyring.parse("off")


def make(url: str, place: Path, ring: Keyring = RING, **options: Any) -> Backup:
    with folder.turn(place):
        return backup.create(url, place, ring=ring, **options)


@pytest.fixture(scope="module")
def filled(module_database: str) -> str:
    fill(module_database)
    return module_database


@pytest.fixture(scope="module")
def made(filled: str, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    return make(filled, tmp_path_factory.mktemp("backups"))


def copied(made: Backup, place: Path, name: str = "") -> Path:
    """A copy that a test may change."""
    return shutil.copytree(made.path, place / (name or made.name))


def synced(handle: int) -> str:
    """The name of what a file handle belongs to."""
    return Path(f"/proc/self/fd/{handle}").readlink().name


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()} - {"backup.lock"}


def test_a_backup_holds_every_row_of_every_table(filled: str, made: Backup) -> None:
    tables = {name: rows for name, rows in everything(filled).items() if "_y2" not in name and "_default" not in name}
    assert made.manifest is not None
    assert {table.name: table.rows for table in made.manifest.tables} == {name: len(r) for name, r in tables.items()}
    assert min(len(rows) for name, rows in tables.items() if name in "agents threads usage audit_log") > 0
    assert [one.state for one in folder.every(made.path.parent)] == ["complete"]
    assert folder.read(made.path, RING) == made.manifest
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in made.path.iterdir()} == {0o600}


def test_sealed_files_show_nothing_and_others_are_plain_gzip(filled: str, made: Backup, tmp_path: Path) -> None:
    assert all(b"alice" not in file.read_bytes() for file in made.path.iterdir())
    clear = make(filled, tmp_path, OFF)
    line, _, packed = (clear.path / "usage_daily.copy.gz").read_bytes().partition(b"\n")
    assert line == b"crafely:0:off"
    assert gzip.decompress(packed).startswith(b"alice\t")


def test_whoever_reads_for_it_could_not_write(filled: str) -> None:
    with backup.connect(filled, role=backup.ROLE) as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("insert into monitor_samples (kind, name, bytes) values ('table', 'x', 1)")
        connection.execute("set default_transaction_read_only = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("insert into monitor_samples (kind, name, bytes) values ('table', 'x', 1)")
        held = connection.execute(
            "select c.relname, p from pg_class c, unnest(array['insert', 'update', 'delete', 'truncate', 'trigger',"
            " 'references']) p where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')"
            " and (has_table_privilege(c.oid, p) or p in ('insert', 'update') and has_any_column_privilege(c.oid, p))"
        )
        assert held.fetchall() == []
        sequences = connection.execute(
            "select relname from pg_class"
            " where case relkind when 'S' then has_sequence_privilege(oid, 'update, usage') end"
        )
        assert sequences.fetchall() == []


def test_no_table_can_be_forgotten(filled: str) -> None:
    """A table that a migration adds has to be read by crafely_backup, whole."""
    with backup.connect(filled, role=backup.ROLE) as connection:
        tables = backup.tables(connection)
    assert len(tables) > 8
    assert [table.name for table in tables if not table.is_whole] == []


UNSEEN = [
    "drop policy agents_backup on agents",
    "alter policy agents_backup on agents using (user_id = 'alice')",
    "create policy agents_less on agents as restrictive for select to crafely_backup using (user_id = 'alice')",
    "create policy agents_less on agents as restrictive to public using (true)",
    "revoke select on agents from crafely_backup",
    "alter policy agents_backup on agents to crafely_monitor",
]


@pytest.mark.parametrize("change", UNSEEN)
def test_a_table_whose_rows_are_not_all_seen_is_refused(database_url: str, tmp_path: Path, change: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(change.encode())
    with pytest.raises(BackupError, match="crafely_backup does not see every row of the table agents: grant it select"):
        make(database_url, tmp_path)
    assert names(tmp_path) == set()


def test_a_table_of_somebody_else_is_not_passed_over(database_url: str, tmp_path: Path) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("create schema theirs; create table theirs.notes (text text)")
    assert make(database_url, tmp_path).state == "complete"
    with psycopg.connect(database_url) as connection:
        connection.execute("create table notes (text text)")
    with pytest.raises(BackupError, match=r"(every row of the table notes|refused: permission denied for table notes)"):
        make(database_url, tmp_path)


def test_what_is_written_meanwhile_is_not_in_it(database_url: str, tmp_path: Path) -> None:
    """Each table is read at another time, and all of them as they were at one."""
    fill(database_url)
    before = {name: len(rows) for name, rows in everything(database_url).items()}
    told: list[str] = []

    def write(what: str, *_: int) -> None:
        told.append(what)
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("insert into agents (name, instructions, user_id) values ('n', 'i', 'alice')")
            other.execute("insert into usage_events (user_id, event_id, usage_id) values ('a', %s, 'u')", [what])
            other.execute("delete from usage_daily where provider = 'p'")

    made = make(database_url, tmp_path, on_progress=write)

    assert made.manifest is not None
    assert told == [table.name for table in made.manifest.tables]
    assert {table.name: table.rows for table in made.manifest.tables} == {
        table.name: before[table.name] for table in made.manifest.tables
    }
    assert everything(database_url)["usage_daily"] == []


def test_a_table_cannot_change_while_it_is_read(database_url: str, tmp_path: Path) -> None:
    refused: list[str] = []

    def change(*_: Any) -> None:
        with psycopg.connect(database_url, options="-c lock_timeout=1ms") as other:
            try:
                other.execute("alter table usage_daily add column more text")
            except psycopg.errors.LockNotAvailable as error:
                refused.append(str(error))

    made = make(database_url, tmp_path, on_progress=change)
    assert made.manifest is not None
    assert len(refused) == len(made.manifest.tables)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_whatever_fails_leaves_nothing(filled: str, tmp_path: Path, failure: BaseException) -> None:
    def fail(what: str, *_: int) -> None:
        if what == "usage":
            raise failure

    with pytest.raises((BackupError, KeyboardInterrupt)) as caught:
        make(filled, tmp_path, on_progress=fail)
    assert names(tmp_path) == set()
    if isinstance(failure, OSError):
        assert str(caught.value) == f"{tmp_path}: the disk is full"


def test_a_disk_that_is_full_at_the_last_moment_is_seen(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system says so when it is synced."""

    def full(handle: int) -> None:
        if synced(handle).endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackupError, match="the disk is full"):
        make(filled, tmp_path)
    assert names(tmp_path) == set()


def test_everything_is_on_the_disk_before_it_has_its_name(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, set[str]]] = []
    sync = os.fsync

    def watch(handle: int) -> None:
        seen.append((synced(handle), names(tmp_path)))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    made = make(filled, tmp_path)

    hidden = f".{made.name}.partial"
    *before, (last, named) = seen
    assert {name for name, _ in before} == {file.name for file in made.path.iterdir()} | {hidden}
    assert all(there == {hidden} for _, there in before)
    assert before[-1][0] == hidden
    assert (last, named) == (tmp_path.name, {made.name})


def test_what_was_left_unfinished_is_shown_and_removed_by_the_next(filled: str, made: Backup, tmp_path: Path) -> None:
    left = copied(made, tmp_path, f".{made.name}.partial")
    (left / "manifest.json").unlink()
    (one,) = folder.every(tmp_path)
    assert (one.state, one.manifest) == ("unfinished", None)
    assert abs((one.started_at - made.started_at).total_seconds()) < 1
    with pytest.raises(BackupError, match="holds no complete backup"):
        folder.find(tmp_path, None)

    after = make(filled, tmp_path)
    assert names(tmp_path) == {after.name}


def test_one_at_a_time(filled: str, tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with folder.turn(tmp_path):
            entered.set()
            leave.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert entered.wait(30)
        with pytest.raises(folder.BusyError, match="another backup is being made in this folder"):
            make(filled, tmp_path)
    finally:
        leave.set()
        other.join()
    assert make(filled, tmp_path).state == "complete"


def test_the_oldest_go_and_what_is_damaged_stays(made: Backup, tmp_path: Path) -> None:
    stamps = [f"2026010{day}T000000-000Z" for day in range(1, 6)]
    for stamp in stamps:
        copied(made, tmp_path, stamp)
    (tmp_path / stamps[0] / "agents.copy.gz.sealed").unlink()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "20260101").mkdir()
    assert folder.retain(tmp_path, 2) == stamps[1:3]
    assert names(tmp_path) == {stamps[0], *stamps[3:], "notes.txt", "20260101"}
    assert [one.state for one in folder.every(tmp_path)] == ["damaged", "complete", "complete"]
    assert folder.find(tmp_path, None).name == stamps[4]
    (tmp_path / stamps[4] / "usage.copy.gz.sealed").unlink()
    assert folder.find(tmp_path, None).name == stamps[3]
    assert folder.find(tmp_path, stamps[3]).name == stamps[3]
    assert folder.find(None, str(tmp_path / stamps[3])).name == stamps[3]
    for wrong in ("20260101T000000-009Z", "../x", "notes.txt", ""):
        with pytest.raises(BackupError, match="no such backup"):
            folder.find(tmp_path, wrong)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is gone": (lambda path: (path / "usage.copy.gz.sealed").unlink(), "usage.copy.gz.sealed is missing"),
    "a file is cut": (
        lambda path: os.truncate(path / "usage.copy.gz.sealed", 60),
        "usage.copy.gz.sealed is not as long as it was written",
    ),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (
        lambda path: os.truncate(path / "manifest.json", 500),
        "manifest.json is not as it was written",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_list_tells_what_is_damaged(made: Backup, tmp_path: Path, name: str) -> None:
    damage, problem = DAMAGES[name]
    damage(copied(made, tmp_path))
    (one,) = folder.every(tmp_path)
    assert (one.state, one.problem, one.manifest) == ("damaged", problem, None)


def flipped(text: bytes, at: int) -> bytes:
    return text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]


@pytest.mark.parametrize("ring", [RING, OFF], ids=["sealed", "clear"])
def test_a_flipped_byte_of_a_manifest_is_found(filled: str, tmp_path: Path, ring: Keyring) -> None:
    made = make(filled, tmp_path, ring)
    manifest = made.path / "manifest.json"
    text = manifest.read_bytes()
    # Some of them each time: all that are there, in some runs.
    for at in range(len(text) % 11, len(text), 11):
        manifest.write_bytes(flipped(text, at))
        with pytest.raises(BackupError):
            folder.read(made.path, ring)
    for other in (text + b" ", text[:-1], text + b"\n", text.replace(b"\n", b"\r\n"), b""):
        manifest.write_bytes(other)
        with pytest.raises(BackupError):
            folder.read(made.path, ring)
    manifest.write_bytes(text)
    folder.read(made.path, ring)


@pytest.mark.parametrize("ring", [RING, OFF], ids=["sealed", "clear"])
def test_a_flipped_byte_of_any_file_is_found(filled: str, tmp_path: Path, ring: Keyring) -> None:
    made = make(filled, tmp_path, ring)
    assert made.manifest is not None
    for table in made.manifest.tables:
        path = made.path / table.file
        text = path.read_bytes()
        for at in {0, len(text) // 2, len(text) - 1}:
            path.write_bytes(flipped(text, at))
            with pytest.raises(BackupError, match=f"{table.file} is not as it was written"):
                folder.check(made.path, made.manifest)
        path.write_bytes(text)
    folder.check(made.path, made.manifest)
    (made.path / "more").touch()
    with pytest.raises(BackupError, match="more does not belong there"):
        folder.check(made.path, made.manifest)


def rewrite(path: Path, ring: Keyring, **changes: Any) -> None:
    """The manifest with other words, and a seal over them by this ring."""
    text = (path / "manifest.json").read_bytes()
    manifest = msgspec.structs.replace(msgspec.json.decode(text, type=folder._Sealed).manifest, **changes)
    (path / "manifest.json").unlink()
    folder.Making(path, path.name).seal(manifest, ring)


def test_who_has_no_key_cannot_make_a_manifest(made: Backup, tmp_path: Path) -> None:
    path = copied(made, tmp_path)
    assert made.manifest is not None
    fewer = made.manifest.tables[1:]
    # In clear; with a key of the same id; without saying which key.
    for ring, key in ((OFF, "first"), (OFF, None), (keyring.parse(keyring.generate("first")), "first")):
        rewrite(path, ring, tables=fewer, key=key)
        with pytest.raises(BackupError):
            folder.read(path, RING)
    rewrite(path, RING, tables=fewer)
    assert folder.read(path, RING).tables == fewer


def test_a_seal_of_another_backup_is_none(filled: str, made: Backup, tmp_path: Path) -> None:
    other = make(filled, tmp_path)
    theirs, ours = (msgspec.json.decode((one.path / "manifest.json").read_bytes()) for one in (other, made))
    mixed = {"manifest": theirs["manifest"], "seal": ours["seal"]}
    (other.path / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(mixed), indent=2) + b"\n")
    with pytest.raises(BackupError, match=r"manifest\.json"):
        folder.read(other.path, RING)


def test_without_its_key_one_line_says_which(made: Backup, tmp_path: Path) -> None:
    for ring in (OFF, keyring.parse(keyring.generate("second"))):
        with pytest.raises(BackupError, match="is sealed with the key first: put it into CRAFELY_ENCRYPTION_KEYS"):
            folder.read(made.path, ring)


def test_a_newer_form_is_told_from_a_damage(made: Backup, tmp_path: Path) -> None:
    path = copied(made, tmp_path)
    rewrite(path, RING, format=2)
    with pytest.raises(BackupError, match="was made by a newer release"):
        folder.read(path, RING)


def test_a_file_may_not_lead_elsewhere(made: Backup, tmp_path: Path) -> None:
    path = copied(made, tmp_path)
    assert made.manifest is not None
    first, *rest = made.manifest.tables
    rewrite(path, RING, tables=[msgspec.structs.replace(first, file="../agents"), *rest])
    with pytest.raises(BackupError, match="is not as it was written"):
        folder.read(path, RING)


def test_a_login_that_cannot_is_told_in_one_line(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError, match="cannot use the database"):
        make(make_conninfo(database_url, dbname="nowhere"), tmp_path)
    with psycopg.connect(database_url) as connection:
        connection.execute("drop table _yoyo_migration")
    with pytest.raises(BackupError, match="the database refused: relation"):
        make(database_url, tmp_path)
    assert names(tmp_path) == set()


# The stream.


def through(blocks: list[bytes], ring: Keyring) -> tuple[stream.Tally, bytes, bytes]:
    tally = stream.Tally()
    packed = b"".join(stream.pack(tally.count(blocks), ring, "name"))
    return tally, packed, b"".join(stream.unpack([packed], ring, "name"))


@pytest.mark.parametrize("ring", [RING, OFF], ids=["sealed", "clear"])
def test_rows_come_back_however_they_are_cut(ring: Keyring) -> None:
    text = b"".join(b"%d\t%s\n" % (n, os.urandom(n % 50).hex().encode()) for n in range(5000))
    sums = set()
    for size in (7, 4096, len(text)):
        tally, packed, back = through([text[at : at + size] for at in range(0, len(text), size)], ring)
        assert back == text
        assert (tally.rows, tally.bytes) == (5000, len(text))
        sums.add(tally.checksum)
        cut = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
        assert b"".join(stream.unpack(cut, ring, "name")) == text
    # One row a block, as the server sends them, and in another order.
    lines = [line + b"\n" for line in text.splitlines()]
    sums |= {through(lines, ring)[0].checksum, through(lines[::-1], ring)[0].checksum}
    assert len(sums) == 1
    assert through([*lines[:-1], lines[0]], ring)[0].checksum not in sums
    assert through([], ring)[2] == b""


@pytest.mark.parametrize("ring", [RING, OFF], ids=["sealed", "clear"])
def test_a_stream_that_is_cut_or_goes_on_is_found(ring: Keyring) -> None:
    _, packed, _ = through([os.urandom(1000).hex().encode() + b"\n" for _ in range(500)], ring)
    for other in (packed[:-1], packed[: len(packed) // 2], packed + b"\0", packed + packed, b""):
        with pytest.raises((stream.DamagedError, keyring.UnreadableError)):
            list(stream.unpack([other], ring, "name"))
    with pytest.raises(stream.DamagedError, match="its last row has no end"):
        through([b"one\n", b"two"], ring)


def test_a_little_that_stands_for_very_much_is_unpacked_in_pieces() -> None:
    packed = list(stream.pack((b"0" * 1023 + b"\n" for _ in range(20_000)), RING, "name"))
    assert sum(map(len, packed)) < 200_000
    sizes = [len(block) for block in stream.unpack(packed, RING, "name")]
    assert sum(sizes) == 20_000 * 1024
    assert max(sizes) <= stream.CHUNK
