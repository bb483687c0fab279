"""``sql/schema.sql`` says what the migrations make, and can make it."""

import subprocess

import psycopg
import pytest

from crafely.db import embedded, schema_file, snapshot
from crafely.db.schema_file import difference, render
from crafely.db.snapshot import Object


def objects(url: str) -> list[Object]:
    with psycopg.connect(url, autocommit=True) as connection:
        return snapshot.take(connection)


def test_it_is_what_the_migrations_make(database_url: str) -> None:
    assert schema_file.path().read_text() == render(objects(database_url)), "run `make schema` and look at the diff"


def test_psql_makes_the_same_of_an_empty_database(
    server: embedded.Server, empty_database: str, database_url: str
) -> None:
    command = [str(server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database]
    done = subprocess.run(
        [*command, "-f", str(schema_file.path())], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    wanted = [one for one in objects(database_url) if not snapshot.is_month(one) and one.parent != "_yoyo_migration"]
    assert snapshot.compare(wanted, objects(empty_database)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("alter table agents alter tools type text using null", "    tools text,"),
        ("revoke select on packages from crafely_app", "grant select on packages to crafely_backup;"),
        ("alter policy agents_own on agents using (true)", "    using (true)"),
        ("drop index packages_created_at_id_idx", "create trigger packages_audit"),
        (
            "alter table packages disable trigger packages_audit",
            "    execute function audit_change('packages') (disabled);",
        ),
        ("comment on table agents is 'it''s new; for all'", "comment on table agents is 'it''s new; for all';"),
        ("grant execute on function audit_change() to public", "comment on function audit_change() is"),
    ],
)
def test_a_change_of_the_schema_is_a_change_of_the_file(superuser: psycopg.Connection, change: str, line: str) -> None:
    with superuser.transaction(force_rollback=True):
        superuser.execute("alter table agents drop constraint agents_tools_check")
        before = render(snapshot.look(superuser))
        superuser.execute(change.encode())
        after = render(snapshot.look(superuser))
    number = difference(before, after)
    assert number is not None
    assert after.splitlines()[number - 1] == line


def test_a_difference_is_the_first_line_of_it() -> None:
    assert difference("a\nb\n", "a\nb\n") is None
    assert difference("a\nb\n", "a\nc\n") == 2
    assert difference("a\nb\n", "a\n") == 2
    assert difference("a\n", "") == 1
