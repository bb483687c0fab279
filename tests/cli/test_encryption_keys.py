"""Keys that texts are sealed with, from a shell: withheld, wrong, lost, and followed by others while the API serves."""

import base64
import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely import keyring
from crafely.keyring import Keyring
from tests.cli.conftest import PROGRAM, Command, Refused, Serving, crafely, environment, until
from tests.conftest import ENCRYPTION_KEY

K1, K2 = (f"{id_}:{base64.b64encode(id_.encode() * 16).decode()}" for id_ in ("k1", "k2"))
AGENT = {"name": "Guard", "instructions": "Keep the code.", "context": "It is 0000."}


# At the start.


@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_the_key_withheld_it_says_so_in_one_line_and_does_not_start(
    refused: Refused, database_url: str, workers: str
) -> None:
    line = refused(
        "serve", "--port", "0", "--workers", workers, CRAFELY_DATABASE_URL=database_url, CRAFELY_ENCRYPTION_KEYS=""
    )
    assert line == (
        "crafely: CRAFELY_ENCRYPTION_KEYS: not set, and with CRAFELY_DATABASE_URL it must be: say id:key, made with: "
        'echo "k1:$(openssl rand -base64 32)"; or off, to store in clear'
    )


def test_the_line_that_makes_a_key_makes_one() -> None:
    made = subprocess.run(
        ["/bin/sh", "-c", 'echo "k1:$(openssl rand -base64 32)"'], capture_output=True, text=True, check=True
    )
    assert keyring.parse(made.stdout).ids == ("k1",)


@pytest.mark.parametrize(("workers", "keys"), [("1", "off"), ("2", K2.replace("k2:", "test:")), ("1", K2)])
def test_with_a_wrong_key_it_says_so_in_one_line_and_does_not_start(
    refused: Refused, database_url: str, workers: str, keys: str
) -> None:
    check_value = keyring.parse(ENCRYPTION_KEY).seal("crafely", "encryption_keys", "check_value", "test")
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into encryption_keys (id, check_value) values ('test', %s)", [check_value])
    line = refused(
        "serve", "--port", "0", "--workers", workers, CRAFELY_DATABASE_URL=database_url, CRAFELY_ENCRYPTION_KEYS=keys
    )
    assert line.startswith("crafely: CRAFELY_ENCRYPTION_KEYS: ")
    assert "the key test" in line
    assert K2.partition(":")[2] not in line


def test_a_worker_that_comes_later_is_refused_as_well(folder: Path, database_url: str) -> None:
    """A key that the database does not know came into use while it ran: nobody may write past it."""
    serving = Serving(folder, "--workers", "2", CRAFELY_DATABASE_URL=database_url).ready()
    until(lambda: len(list(folder.glob("crafely-metrics-*/histogram_*.db"))) == 2, "both workers to start")
    with psycopg.connect(database_url) as connection:
        connection.execute("insert into encryption_keys (id, check_value) values ('k9', 'crafely:1:k9:AAAA')")
    children = Path(f"/proc/{serving.process.pid}/task/{serving.process.pid}/children").read_text().split()
    for worker in children:
        os.kill(int(worker), signal.SIGKILL)
    assert serving.ended() == 1
    lines = [json.loads(line)["message"] for line in serving.err.splitlines() if '"critical"' in line]
    assert {line.partition("k9")[0] for line in lines} == {
        "this worker cannot start: CRAFELY_ENCRYPTION_KEYS: texts of this database are sealed with the key "
    }


def test_the_embedded_database_has_a_key_of_its_own_and_a_lost_one_is_not_replaced(
    copied: tuple[Path, str],
) -> None:
    folder, key = copied
    path = folder / ".crafely" / "encryption.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_text()
    assert keyring.parse(kept).ids == ("local",)

    path.unlink()
    for command in (["serve", "--port", "0"], ["keys", "reencrypt"]):
        done = crafely(folder, *command)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == (
            "crafely: .crafely/encryption.key is gone, and texts of the database are sealed with its key local: "
            "put it back from a copy, or say the key in CRAFELY_ENCRYPTION_KEYS"
        )
        assert not path.exists()

    path.write_text(K1)
    done = crafely(folder, "serve", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "with the key local, which is not among them" in done.stderr

    path.write_text(kept)
    serving = Serving(folder).ready()
    (agent,) = serving.get("/v1/agents", key)[1]["data"]
    assert serving.get(f"/v1/agents/{agent['id']}", key)[1]["instructions"] == "Stay."
    # Not on anybody's screen either.
    secret = kept.strip().partition(":")[2]
    assert secret not in serving.out + serving.err
    serving.stop()


# Rotation.


@pytest.fixture
def reencrypt(capsys: pytest.CaptureFixture[str], database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, on the test's database."""
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    return Command(capsys, "keys", "reencrypt")


class Rows:
    """Agents and threads as they are stored, and what they say."""

    def __init__(self, superuser: psycopg.Connection) -> None:
        self._superuser = superuser
        self.texts: dict[tuple[str, str, str], str] = {}

    def fill(self, ring: Keyring, count: int, start: int = 0) -> None:
        self._superuser.execute("set session_replication_role = 'replica'")
        for n in range(start, start + count):
            agent, thread = f"agnt_{n:04}", f"thrd_{n:04}"
            columns = {"instructions": f"Instructions {n}.", "context": f"Context {n}." if n % 3 else None}
            self._superuser.execute(
                "insert into agents (id, name, user_id, deleted_at, instructions, context, updated_at)"
                " values (%s, 'a', %s, %s, %s, %s, '2026-01-01')",
                [
                    agent,
                    f"user_{n % 7}",
                    "2026-01-02" if n % 5 == 0 else None,
                    *ring.seal_columns("agents", agent, columns).values(),
                ],
            )
            of_thread = f"Thread {n}." if n % 2 else None
            self._superuser.execute(
                "insert into threads (id, name, user_id, instructions, updated_at)"
                " values (%s, 't', %s, %s, '2026-01-01')",
                [
                    thread,
                    f"user_{n % 7}",
                    *ring.seal_columns("threads", thread, {"instructions": of_thread}).values(),
                ],
            )
            for place, text in [
                (("agents", "instructions", agent), columns["instructions"]),
                (("agents", "context", agent), columns["context"]),
                (("threads", "instructions", thread), of_thread),
            ]:
                if text is not None:
                    self.texts[place] = text
        self._superuser.execute("set session_replication_role = 'origin'")

    def stored(self) -> dict[tuple[str, str, str], str]:
        rows = self._superuser.execute(
            "select 'agents', 'instructions', id, instructions from agents"
            " union all select 'agents', 'context', id, context from agents where context is not null"
            " union all select 'threads', 'instructions', id, instructions from threads where instructions is not null"
        )
        return {(table, column, id_): text for table, column, id_, text in rows}

    def keys(self) -> set[str]:
        return {keyring.key_id(text) or "off" for text in self.stored().values()}

    def opened(self, *keys: str) -> dict[tuple[str, str, str], str]:
        ring = keyring.parse(",".join(keys))
        return {place: ring.open(text, *place) for place, text in self.stored().items()}


@pytest.fixture
def rows(superuser: psycopg.Connection) -> Rows:
    return Rows(superuser)


@pytest.mark.parametrize(("old", "new"), [(K1, K2), ("off", K2), (K1, "off")])
def test_every_text_is_stored_anew_and_says_the_same(
    reencrypt: Command, rows: Rows, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    rows.fill(keyring.parse(old), 100)
    before = rows.stored()
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", old)
    report = reencrypt.json()
    assert (report["reencrypted"], rows.stored()) == (0, before)

    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", ",".join(key for key in (new, old) if key != "off" or key == new))
    report = reencrypt.json()
    name = new.partition(":")[0]
    # 100 agents, and the 50 threads that have instructions.
    assert (report["key"], report["reencrypted"], report["unreadable"]) == (name, 150, [])
    assert report["retired"] == [old.partition(":")[0]]
    assert [(c["tableName"], c["columnName"], c["keyId"], c["texts"]) for c in report["texts"]] == [
        ("agents", "context", name, 66),
        ("agents", "instructions", name, 100),
        ("threads", "instructions", name, 50),
    ]
    assert rows.keys() == {name}
    assert rows.opened(new) == rows.texts
    stamps = superuser.execute("select updated_at from agents union select updated_at from threads").fetchall()
    assert [stamp.date().isoformat() for (stamp,) in stamps] == ["2026-01-01"]

    # The old key may go now, and a second time there is nothing to do.
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", new)
    again = rows.stored()
    report = reencrypt.json()
    assert (report["reencrypted"], report["retired"], rows.stored()) == (0, [], again)


def test_people_get_a_table(reencrypt: Command, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.fill(keyring.parse(K1), 3)
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", f"{K2},{K1}")
    assert reencrypt() == 0
    assert [line.split() for line in reencrypt.out.splitlines() if "agents" in line] == [
        ["agents", "context", "k2", "2"],
        ["agents", "instructions", "k2", "3"],
    ]
    assert "4 rows stored anew; 0 texts left" in reencrypt.err


def test_a_key_is_needed_as_long_as_an_answer_is_kept(
    reencrypt: Command, rows: Rows, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.fill(keyring.parse(K1), 3)
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", K1)
    assert reencrypt() == 0
    body = keyring.parse(K1).seal("{}", "idempotency_keys", "body", "alice/once")
    superuser.execute(
        "insert into idempotency_keys (user_id, key, fingerprint, status, body) values ('alice', 'once', '', 201, %s)",
        [body],
    )
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", f"{K2},{K1}")
    assert reencrypt() == 1
    assert reencrypt.err.splitlines() == [
        "4 rows stored anew; 1 texts left",
        "answers that are kept for idempotency keys are forgotten within a day: run it again then",
    ]
    superuser.execute("delete from idempotency_keys")
    assert reencrypt.json()["retired"] == ["k1"]


def test_what_no_key_opens_stays_as_it_is_and_is_named(
    reencrypt: Command, rows: Rows, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.fill(keyring.parse(K1), 6)
    superuser.execute(
        "update agents set instructions = (select instructions from agents where id = 'agnt_0002')"
        " where id = 'agnt_0001'"
    )
    superuser.execute("update threads set instructions = 'crafely:1:gone:AAAA' where id = 'thrd_0003'")
    before = rows.stored()
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", f"{K2},{K1}")
    assert reencrypt("--json") == 1
    report = json.loads(reencrypt.out)
    assert report["reencrypted"] == 7
    assert report["unreadable"] == [
        "agents/instructions/agnt_0001 is damaged, or was sealed in another place, or with another key k1",
        "threads/instructions/thrd_0003 is sealed with the key gone, which is not here",
    ]
    # k1 is still needed, for what else is in the row.
    assert report["retired"] == []
    assert {(c["keyId"], c["texts"]) for c in report["texts"] if c["keyId"] != "k2"} == {("k1", 1), ("gone", 1)}
    kept = {place for place, text in rows.stored().items() if text == before[place]}
    assert {place[2] for place in kept} == {"agnt_0001", "thrd_0003"}


@pytest.mark.parametrize(("keys", "said"), [("", "CRAFELY_ENCRYPTION_KEYS: not set"), (K2, "sealed with the key k1")])
def test_without_the_old_key_nothing_is_done(
    reencrypt: Command, rows: Rows, monkeypatch: pytest.MonkeyPatch, keys: str, said: str
) -> None:
    rows.fill(keyring.parse(K1), 3)
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", K1)
    assert reencrypt() == 0
    before = rows.stored()
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", keys)
    assert reencrypt() == 1
    assert said in reencrypt.err
    assert len(reencrypt.err.splitlines()) == 1
    assert rows.stored() == before


def test_a_login_without_the_role_is_told_in_one_line(
    reencrypt: Command, superuser: psycopg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = f"crafely_login_{os.getpid()}"
    parts: dict[str, Any] = conninfo_to_dict(database_url)
    superuser.execute(f"create role {login} login password 'x'".encode())
    superuser.execute(f"grant crafely_app, crafely_auth, crafely_meter, crafely_admin to {login}".encode())
    try:
        monkeypatch.setenv("CRAFELY_DATABASE_URL", make_conninfo(**{**parts, "user": login, "password": "x"}))
        monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", K1)
        assert reencrypt() == 1
        assert "crafely_encryption" in reencrypt.err
        assert len(reencrypt.err.splitlines()) == 1
    finally:
        superuser.execute(f"drop role {login}".encode())


# While the API serves.


class Writer:
    """Changes agents over HTTP as fast as it is answered, until it is told to stop; knows what was acknowledged."""

    def __init__(self, serving: Serving, key: str, ids: list[str]) -> None:
        self._serving, self._key, self._ids = serving, key, ids
        self.said: dict[str, str] = {}
        self.wrong: list[Any] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            id_ = self._ids[number * 7 % len(self._ids)]
            status, body = self._serving.request(
                "PATCH", f"/v1/agents/{id_}", self._key, {"context": f"Context, changed {number} times."}
            )
            if status == 200:
                self.said[id_] = body["context"]
            else:
                self.wrong.append((status, body))


@pytest.fixture
def agents(folder: Path, database_url: str) -> Iterator[tuple[Serving, str, list[str]]]:
    """A server that reads both keys and still writes with the old one; a key; and agents of its owner."""
    serving = Serving(folder, CRAFELY_DATABASE_URL=database_url, CRAFELY_ENCRYPTION_KEYS=f"{K1},{K2}").ready()
    made = crafely(folder, "keys", "create", CRAFELY_DATABASE_URL=database_url)
    key = made.stdout.strip()
    ids = [serving.request("POST", "/v1/agents", key, AGENT)[1]["id"] for _ in range(120)]
    yield serving, key, sorted(ids)
    serving.stop()


def test_killed_in_the_middle_it_is_resumed_while_agents_change_and_no_change_is_lost(
    agents: tuple[Serving, str, list[str]], database_url: str, folder: Path
) -> None:
    serving, key, ids = agents
    variables = {"CRAFELY_DATABASE_URL": database_url, "CRAFELY_ENCRYPTION_KEYS": f"{K2},{K1}"}
    command = [PROGRAM, "keys", "reencrypt", "--json"]
    with (
        psycopg.connect(database_url) as locked,
        psycopg.connect(database_url, autocommit=True) as look,
        Writer(serving, key, ids[:100]) as writer,
    ):
        # It comes to this row in its third batch at the earliest, and waits there.
        held = ids[110]
        locked.execute("select from agents where id = %s for update", [held])
        process = subprocess.Popen(command, cwd=folder, env=environment(**variables), stdout=subprocess.DEVNULL)
        waiting = "select from pg_stat_activity where wait_event_type = 'Lock' and query like %s"
        until(lambda: look.execute(waiting, ["%crafely:agents/reencrypt%"]).rowcount, "it to be in the middle")
        process.kill()
        process.wait(60)
        keys = "select sealed_with(instructions), count(*) from agents group by 1"
        middle: dict[str, int] = dict(look.execute(keys).fetchall())
        assert set(middle) == {"k1", "k2"}
        # Whoever changes the row meanwhile wins.
        ring = keyring.parse(K1)
        locked.execute(
            "update agents set context = %s where id = %s", [ring.seal("Changed.", "agents", "context", held), held]
        )
        locked.commit()
        done = subprocess.run(
            command, cwd=folder, env=environment(**variables), capture_output=True, text=True, check=False, timeout=60
        )
        until(lambda: len(writer.said) > 30, "agents to change")
    assert writer.wrong == []
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["unreadable"] == []
    assert report["reencrypted"] >= middle["k1"] - 100

    # The server still wrote with the old key: what it wrote since is left, is said to be, and is found the next time.
    done = crafely(folder, "keys", "reencrypt", "--json", **variables)
    report = json.loads(done.stdout)
    assert {count["keyId"] for count in report["texts"]} == {"k2"}
    for id_ in ids:
        status, agent = serving.get(f"/v1/agents/{id_}", key)
        assert (status, agent["instructions"]) == (200, AGENT["instructions"])
        expected = "Changed." if id_ == held else writer.said.get(id_, AGENT["context"])
        assert agent["context"] == expected
