"""The commands with both URLs set: what needs a session has the server itself, and serving goes through the pooler."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db import embedded
from tests.cli.conftest import Command, Refused, Serving, crafely, processes, until
from tests.conftest import ENCRYPTION_KEY
from tests.pooler import PASSWORD, Pooler, needs_pgbouncer, pooling

SECRET = "hunter2"


@pytest.fixture(scope="module")
def pooler(server: embedded.Server) -> Iterator[Pooler]:
    """One connection of the server for each database."""
    with pooling(server.url, default_pool_size=1) as pooler:
        yield pooler


def told(pooler: Pooler, url: str) -> dict[str, str]:
    """The settings of a process."""
    return {"CRAFELY_DATABASE_URL": url, "CRAFELY_POOLER_URL": pooler.url(url), "CRAFELY_LOG_LEVEL": "debug"}


def logins(pooler: Pooler, url: str) -> int:
    """How often somebody has come to the pooler for this database."""
    return pooler.log().count(f"login attempt: db={conninfo_to_dict(url)['dbname']} ")


@needs_pgbouncer
def test_what_serves_goes_through_it(
    folder: Path, pooler: Pooler, database_url: str, superuser: psycopg.Connection
) -> None:
    variables = told(pooler, database_url)
    made = crafely(folder, "keys", "create", "--admin", "--json", **variables)
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)["key"]
    assert logins(pooler, database_url) == 0
    serving = Serving(folder, "--workers", "2", **variables).ready()
    assert logins(pooler, database_url) > 0

    assert serving.request("POST", "/v1/agents", key, {"name": "a", "instructions": "i"})[0] == 201
    assert [agent["name"] for agent in serving.get("/v1/agents", key)[1]["data"]] == ["a"]
    # Of the server's own connections, each worker has the one that listens, once it has started; the pooler the other.
    direct = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'cra%'"
    until(lambda: superuser.execute(direct).fetchone() == (2 + 1,), "two listeners and the pooler")
    assert PASSWORD not in serving.err + serving.out
    serving.stop()


@needs_pgbouncer
def test_no_other_command_does(
    pooler: Pooler,
    empty_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variables = {**told(pooler, empty_database), "CRAFELY_BACKUP_DIR": str(tmp_path / "backups")}
    for name, value in {**variables, "CRAFELY_ENCRYPTION_KEYS": ENCRYPTION_KEY}.items():
        monkeypatch.setenv(name, value)
    command = Command(capsys)
    for arguments in (
        "migrate up",
        "migrate status --history",
        "keys create --user alice",
        "keys list --json",
        "backup create",
        "usage reconcile",
        "audit verify",
        "explain api_keys/lookup --json",
        "migrate down",
    ):
        assert command(*arguments.split()) == 0, f"{arguments}: {command.err}"
    assert logins(pooler, empty_database) == 0


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "list")])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"CRAFELY_POOLER_URL": f"mysql://me:{SECRET}@127.0.0.1/crafely", "CRAFELY_DATABASE_URL": "dbname=x"},
            "crafely: CRAFELY_POOLER_URL: expected a URL such as postgresql://user@host/name",
        ),
        (
            {"CRAFELY_POOLER_URL": f"postgresql://me:{SECRET}@127.0.0.1/crafely"},
            "crafely: CRAFELY_POOLER_URL: CRAFELY_DATABASE_URL has to name the server behind it",
        ),
    ],
)
def test_a_url_that_is_none_or_stands_alone_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    variables: dict[str, str],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    crafely = Command(capsys)

    assert crafely(*command) == 1
    assert (crafely.out, crafely.err) == ("", f"{said}\n")


@needs_pgbouncer
@pytest.mark.parametrize(
    ("workers", "parts", "said"),
    [
        ("1", {"password": SECRET}, "SASL authentication failed"),
        ("2", {"dbname": "postgres"}, "it leads to another database than CRAFELY_DATABASE_URL"),
    ],
)
def test_a_pooler_that_cannot_be_used_is_one_line(
    refused: Refused, pooler: Pooler, database_url: str, parts: dict[str, object], said: str, workers: str
) -> None:
    url = make_conninfo(**{**conninfo_to_dict(pooler.url(database_url)), **parts})  # type: ignore[arg-type] # its own values
    line = refused(
        "serve", "--port", "0", "--workers", workers, CRAFELY_DATABASE_URL=database_url, CRAFELY_POOLER_URL=url
    )

    assert said in line
    assert SECRET not in line


@needs_pgbouncer
def test_a_worker_that_starts_while_the_pooler_is_away_waits_for_it(
    folder: Path, server: embedded.Server, database_url: str
) -> None:
    with pooling(server.url) as own:
        serving = Serving(folder, "--workers", "2", **told(own, database_url)).ready()
        own.stop(signal.SIGKILL)
        before = set(processes(folder))
        for worker in before - {serving.process.pid}:
            os.kill(worker, signal.SIGKILL)
        until(lambda: "waits for the database" in serving.err, "a new worker to wait")
        own.start()
        until(lambda: len(set(processes(folder)) - before) == 2, "new workers")
        until(lambda: ready(serving), "the server to be ready")
        serving.stop()


def ready(serving: Serving) -> bool:
    try:
        return serving.get("/readyz")[0] == 200
    except OSError:
        return False
