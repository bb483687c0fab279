"""``crafely backup`` as people and cron use it."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import psycopg
import pytest

from crafely import keyring
from crafely.cli import backup
from tests.cli.conftest import PROGRAM, SECONDS, Command, crafely, environment, until
from tests.db.rows import everything, fill

KEY = keyring.generate("first")


@pytest.fixture(scope="module")
def filled(module_database: str) -> str:
    fill(module_database)
    return module_database


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def command(filled: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in [name for name in os.environ if name.startswith("CRAFELY_") and name != "CRAFELY_TEST_POSTGRES"]:
        monkeypatch.delenv(name)
    for name, value in environment().items():
        if name == "CRAFELY_POSTGRES_BIN":
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("CRAFELY_DATABASE_URL", filled)
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", KEY)
    monkeypatch.setenv("CRAFELY_BACKUP_DIR", str(place))
    return Command(capsys, "backup")


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name != "backup.lock")


def test_a_backup_is_made_listed_verified_and_restored(
    command: Command, place: Path, filled: str, empty_database: str
) -> None:
    made = command.json("create")
    (name,) = names(place)
    assert (made["name"], made["path"], made["state"], made["key"]) == (name, str(place / name), "complete", "first")
    assert made["rows"] == sum(len(rows) for table, rows in everything(filled).items() if "_y2" not in table) - 1
    assert command.json("list") == [made]

    verified = command.json("verify")
    assert (verified["name"], verified["rows"], verified["findings"]) == (name, made["rows"], [])
    assert 0 < verified["seconds"] < SECONDS

    restored = command.json("restore", name, "--into", empty_database)
    assert (restored["name"], restored["rows"]) == (name, made["rows"])
    wanted, found = everything(filled), everything(empty_database)
    # The trail was never sealed, and now is: before anybody writes.
    assert (len(wanted.pop("audit_seals")), len(found.pop("audit_seals"))) == (0, 1)
    assert found == wanted
    # What it was restored into is not empty any more.
    assert command("restore", "--into", empty_database) == 1
    assert command.out == ""
    assert "is not empty (it has public." in command.err


def test_people_read_tables(command: Command, place: Path) -> None:
    assert command("list") == 0
    assert command("create") == 0
    (name,) = names(place)
    assert (command.out, command.err) == (f"{place / name}\n", "")
    assert command("list") == 0
    line = next(line for line in command.out.splitlines() if name in line)
    assert line.split()[-1] == "complete"
    assert " 0 min " in line
    (place / name / "usage.copy.gz.sealed").unlink()
    assert command("list") == 1
    assert "damaged: usage.copy.gz.sealed is missing" in command.out


def test_a_flipped_byte_is_found_by_verify(command: Command, place: Path) -> None:
    assert command("create") == 0
    file = place / names(place)[0] / "agents.copy.gz.sealed"
    text = file.read_bytes()
    file.write_bytes(text[:-1] + bytes([text[-1] ^ 8]))
    assert command("verify") == 1
    assert command.out == ""
    assert command.err == f"crafely: {file.parent.name}: agents.copy.gz.sealed is not as it was written\n"


CHANGES = {
    "alter table threads disable trigger threads_audit": "trigger threads_audit on threads: is «",
    "update agents set instructions = 'crafely:1:first:' || repeat('A', 64) where id = 'agnt_1'": (
        "agents/instructions/agnt_1 is damaged, or was sealed in another place"
    ),
    "delete from audit_log where row_id = 'agnt_2'": "audit trail: seal 1: row ",
    "insert into encryption_keys (id, check_value) values ('second', 'x')": (
        "texts of this database are sealed with the key second, which is not among them"
    ),
}


def test_verify_tells_what_is_not_good_in_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("create") == 0
    restore = vars(backup)["restore"]

    def changed(url: str, *words: object, **more: object) -> object:
        done = restore(url, *words, **more)
        with psycopg.connect(url) as connection:
            for change in CHANGES:
                connection.execute(change.encode())
        return done

    monkeypatch.setattr(backup, "restore", changed)
    assert command("verify", "--json") == 1
    findings = json.loads(command.out)["findings"]
    assert len(findings) == len(CHANGES)
    for finding in CHANGES.values():
        assert any(finding in found for found in findings), findings


def test_due_is_for_a_schedule(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFELY_BACKUP_KEEP", "2")
    assert command("create", "--due") == 0
    (first,) = names(place)
    assert command("create", "--due") == 0
    assert command.err == "nothing to do: the newest is younger than 24 h\n"
    assert names(place) == [first]
    # Whoever asks for one gets one, and none is removed.
    assert command("create") == command("create") == 0
    assert len(names(place)) == 3
    monkeypatch.setenv("CRAFELY_BACKUP_HOURS", "0.00000001")
    assert command("create", "--due") == 0
    assert first not in names(place)
    assert len(names(place)) == 2
    assert command.err.splitlines()[0] == f"removed {first}"


def test_without_a_folder_or_a_key_nothing_is_done(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("create") == 0
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", keyring.generate("second"))
    assert command("verify") == 1
    assert "is sealed with the key first: put it into CRAFELY_ENCRYPTION_KEYS" in command.err
    assert command("verify", "20000101T000000-000Z") == 1
    assert "no such backup" in command.err
    monkeypatch.delenv("CRAFELY_ENCRYPTION_KEYS")
    assert command("create") == 1
    assert "CRAFELY_ENCRYPTION_KEYS" in command.err
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", KEY)
    monkeypatch.delenv("CRAFELY_BACKUP_DIR")
    for action in ("create", "list"):
        assert command(action) == 2
        assert command.err.startswith("crafely: --dir: expected the folder ")
    assert command("verify") == 1
    assert "expected the folder of a backup, or CRAFELY_BACKUP_DIR" in command.err


def test_a_disk_that_is_full_leaves_no_half(filled: str, place: Path, tmp_path: Path) -> None:
    """The kernel lets no file grow beyond a limit, which comes in the middle of one."""
    done = subprocess.run(
        [PROGRAM, "backup", "create", "--dir", str(place)],
        env=environment(CRAFELY_DATABASE_URL=filled, CRAFELY_ENCRYPTION_KEYS=KEY),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)),
    )
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr == f"crafely: {place}: File too large\n"
    assert names(place) == []


def test_one_that_is_killed_never_looks_complete(filled: str, command: Command, place: Path, tmp_path: Path) -> None:
    with psycopg.connect(filled) as blocker:
        # It has begun to write, and waits for this table.
        blocker.execute("lock table usage_daily in access exclusive mode")
        process = subprocess.Popen(
            [PROGRAM, "backup", "create", "--dir", str(place)],
            env=environment(CRAFELY_DATABASE_URL=filled, CRAFELY_ENCRYPTION_KEYS=KEY),
            cwd=tmp_path,
        )
        until(lambda: list(place.glob(".*.partial")), "the backup to begin")
        # Another one is told, and a schedule leaves it alone.
        assert command("create") == 1
        assert "another backup is being made in this folder" in command.err
        assert command("create", "--due") == 0
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
    (left,) = command.json("list")
    assert (left["state"], left["rows"]) == ("unfinished", None)
    assert command("verify") == 1
    assert "holds no complete backup" in command.err
    made = command.json("create")
    assert [one["name"] for one in command.json("list")] == [made["name"]]


def test_one_that_is_told_to_stop_leaves_nothing(filled: str, place: Path, tmp_path: Path) -> None:
    with psycopg.connect(filled) as blocker:
        blocker.execute("lock table usage_daily in access exclusive mode")
        process = subprocess.Popen(
            [PROGRAM, "backup", "create", "--dir", str(place)],
            env=environment(CRAFELY_DATABASE_URL=filled, CRAFELY_ENCRYPTION_KEYS=KEY),
            cwd=tmp_path,
        )
        until(lambda: list(place.glob(".*.partial")), "the backup to begin")
        process.terminate()
        assert process.wait(SECONDS) == 130
    assert names(place) == []


def test_secrets_stand_in_no_line_of_it(command: Command, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAFELY_DATABASE_URL", filled.replace("dbname=", "dbname=no_") + " password=hunter2")
    assert command("create") == 1
    assert "cannot use the database" in command.err
    assert "hunter2" not in command.err
    assert KEY.partition(":")[2] not in command.err


def test_the_embedded_database_is_destroyed_and_comes_back(copied: tuple[Path, str]) -> None:
    """As one does it: the folder of the data is gone, its keys are kept apart."""
    folder, _ = copied
    place = str(folder / "kept")
    made = crafely(folder, "backup", "create", "--dir", place, "--json")
    assert made.returncode == 0, made.stderr
    subprocess.run(["/bin/rm", "-rf", folder / ".crafely" / "postgres"], check=True)
    done = crafely(folder, "backup", "restore", "--dir", place, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == json.loads(made.stdout)["rows"] > 1
