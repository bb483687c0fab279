"""``crafely migrate``: what a deployment script relies on."""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Refused, crafely


@pytest.fixture
def command(folder: Path, empty_database: str) -> Any:
    """Runs ``crafely migrate …`` on an empty database. Gives exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        done = crafely(folder, "migrate", *arguments, CRAFELY_DATABASE_URL=empty_database)
        return done.returncode, done.stdout, done.stderr

    return run


def test_forwards_and_back(command: Any) -> None:
    def states() -> list[str]:
        code, out, _ = command("status", "--history", "--json")
        found = [migration["state"] for migration in json.loads(out)["migrations"]]
        assert code == (0 if set(found) == {"applied"} else 1)
        return found

    count = len(states())
    assert states() == ["pending"] * count
    code, out, said = command("up", "--to", "0003.api-keys")
    assert (code, out) == (0, "")
    assert said.splitlines() == [
        "applying 0001.roles",
        "applying 0002.functions",
        "applying 0003.api-keys",
        "3 applied",
    ]
    assert states() == ["applied"] * 3 + ["pending"] * (count - 3)
    assert command("up")[2].splitlines()[-1] == f"{count - 3} applied"
    assert states() == ["applied"] * count
    assert command("up") == (0, "", "nothing to do\n")
    assert command("down", "--steps", "2")[2].splitlines()[-1] == "2 rolled back"
    assert command("down", "--all")[2].splitlines()[-1] == f"{count - 2} rolled back"
    assert command("down") == (0, "", "nothing to do\n")


def test_status_as_a_table(command: Any) -> None:
    code, out, said = command("status")
    assert (code, said) == (1, "")
    assert "0001.roles" in out
    assert "pending" in out
    assert out.endswith("objects: not compared: no migration is applied\n")


def test_status_names_what_is_not_as_migrations_make_it(command: Any, empty_database: str) -> None:
    command("up")
    assert command("status")[:2] == (
        0,
        command("status", "--history")[1] + "objects: all are as the migrations make them\n",
    )
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("grant delete on agents to crafely_app")
        connection.execute("drop index threads_user_id_created_at_id_idx")
    code, out, said = command("status", "--json")
    assert (code, said) == (1, "")
    assert [one["object"] for one in json.loads(out)["drift"]["differences"]] == [
        "grant on agents to crafely_app",
        "index threads_user_id_created_at_id_idx on threads",
    ]
    code, out, _ = command("status")
    assert code == 1
    assert "2 differ from what the migrations make:\n  grant on agents to crafely_app: is «delete, insert" in out
    assert "reset" not in out


def test_verify_tells_what_a_migration_did(folder: Path) -> None:
    done = crafely(folder, "migrate", "verify", "0005.threads")
    assert (done.returncode, done.stderr) == (0, "")
    assert "agents: share row exclusive" in done.stdout
    assert done.stdout.endswith("1 migrations there, back and there again, 0 findings\n")


def test_reset_of_a_named_database_needs_its_name(command: Any, empty_database: str) -> None:
    assert command("up")[0] == 0
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("insert into packages (name, price) values ('kept', 1)")
        (name,) = connection.execute("select current_database()").fetchone() or ("",)

        def packages() -> tuple[int] | None:
            return connection.execute("select count(*) from packages").fetchone()

        for force in ([], ["--force", "another"]):
            code, out, said = command("reset", *force)
            assert (code, out) == (1, "")
            assert said == f"crafely: reset destroys all data of the database '{name}': only its name can force that\n"
            assert packages() == (1,)
        assert command("reset", "--force", name)[0] == 0
        assert packages() == (0,)


def test_reset_of_the_embedded_database_needs_nothing(copied: tuple[Path, str]) -> None:
    folder, _ = copied
    assert crafely(folder, "migrate", "reset").returncode == 0
    assert json.loads(crafely(folder, "keys", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["up", "--to", "0099.nothing"], 1, "0099.nothing: the folder has no such migration"),
        (["down", "--steps", "0"], 1, "steps: 0 is not a whole number from 1"),
        (["down", "--steps", "two"], 2, "argument --steps: invalid int value: 'two'"),
        (["verify", "0099.nothing"], 1, "0099.nothing: the folder has no such migration"),
        (["new", "Not A Topic"], 1, "Not A Topic"),
        (["sideways"], 2, "invalid choice: 'sideways'"),
        ([], 2, "the following arguments are required: ACTION"),
    ],
)
def test_wrong_usage_is_one_line(
    refused: Refused, empty_database: str, arguments: list[str], code: int, said: str
) -> None:
    assert said in refused("migrate", *arguments, code=code, CRAFELY_DATABASE_URL=empty_database)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--against", "no-such-revision"], "no-such-revision: fatal: not a valid object name"),
        (["api_keys/lookup", "--against", "HEAD"], "--against holds every statement: leave the name out"),
        (["--against"], "argument --against: expected one argument"),
    ],
)
def test_check_against_what_is_no_release_is_one_line(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused("check", *arguments, code=2)
