"""What other tools make of our SQL: psql with the migrations one after the other, and sqlfluff with its rules."""

import json
import subprocess
import sys
from pathlib import Path

import psycopg

from crafely.db import embedded, migrate, snapshot
from crafely.db.snapshot import Object

ROOT = Path(__file__).parents[1]
SQLFLUFF = Path(sys.executable).with_name("sqlfluff")


def files(twin: bool) -> list[Path]:
    """The migrations in order, or their rollbacks, newest first."""
    names = list(migrate.expected())
    if twin:
        return [migrate.folder() / f"{name}.rollback.sql" for name in reversed(names)]
    return [migrate.folder() / f"{name}.sql" for name in names]


def psql(server: embedded.Server, url: str, script: str) -> None:
    command = [str(server.bin / "psql"), "-X", "-q", "--set", "ON_ERROR_STOP=1", "-o", "/dev/null", "-d", url]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def objects(url: str) -> list[Object]:
    """What a database holds, but for roles, which are the server's, and for what concerns yoyo's own table."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = snapshot.take(connection)
    return [one for one in found if one.kind != "role" and one.parent != "_yoyo_migration"]


def test_psql_runs_the_migrations_one_after_the_other_and_back(
    server: embedded.Server, empty_database: str, database_url: str
) -> None:
    before = objects(empty_database)
    psql(server, empty_database, "\n".join(path.read_text() for path in files(twin=False)))
    assert objects(empty_database) == objects(database_url)
    psql(server, empty_database, "\n".join(path.read_text() for path in files(twin=True)))
    assert objects(empty_database) == before


def test_sqlfluff_finds_what_it_is_there_for(tmp_path: Path) -> None:
    """That the tree has nothing of it is seen by `make lint`, which takes longer."""
    (tmp_path / "bad.sql").write_text("SELECT id from agents where name = null;\n\nselect 1 from from agents;\n")
    command = [str(SQLFLUFF), "lint", "--format=json", "--config", str(ROOT / ".sqlfluff"), str(tmp_path / "bad.sql")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    found = {(one["start_line_no"], one["code"]) for one in json.loads(done.stdout)[0]["violations"]}
    assert found >= {(1, "CP01"), (1, "CV05"), (3, "PRS")}
