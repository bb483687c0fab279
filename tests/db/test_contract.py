"""The store as it is has no finding; each fault that is planted in a copy of it is found, with file and line."""

import shutil
from pathlib import Path

import msgspec
import psycopg
import pytest

from crafely.db import contract, query
from crafely.db.contract import Finding
from crafely.db.query import Statement
from crafely.store import agents, api_keys, threads


def test_every_statement_and_its_signature_agree(database_url: str) -> None:
    assert len(query.statements) > 40
    assert contract.check(database_url) == []


def test_only_one_statement_is_checked_when_it_is_named(database_url: str, superuser: psycopg.Connection) -> None:
    superuser.execute("alter table threads rename column model to engine")

    assert contract.check(database_url, "agents/get") == []
    assert [f.path for f in contract.check(database_url, "threads/get")] == ["sql/threads/get.sql"]


def line_of(name: str, text: str) -> int:
    """The line of a file on which a text first stands."""
    source = (query.folder() / f"{name}.sql").read_text()
    return source.count("\n", 0, source.index(text)) + 1


# A change of the schema that a file does not know of; what is found: the file, where, the rule, and what it says.
SCHEMA_FAULTS = [
    ("alter table threads rename column model to engine", "threads/get", "model", "prepare", '"model" does not exist'),
    (
        "revoke select on threads from crafely_app",
        "threads/get",
        None,
        "prepare",
        "permission denied for table threads",
    ),
    (
        "revoke execute on function ensure_month_partitions from crafely_admin",
        "monitor/ensure_partitions",
        "select",
        "prepare",
        "permission denied for function ensure_month_partitions",
    ),
    ("revoke update (name) on agents from crafely_app", "agents/update", None, "prepare", "permission denied"),
    ("drop index agents_user_id_created_at_id_idx", "agents/list_for_user", "-- uses", "uses", "there is no index"),
    (
        "alter table agents alter column name type bytea using name::bytea",
        "agents/get",
        "-- returns",
        "columns",
        "column name is bytea, Agent says str (text or varchar)",
    ),
]


@pytest.mark.parametrize(("change", "name", "text", "rule", "problem"), SCHEMA_FAULTS)
def test_a_schema_that_has_moved_is_found(  # what is planted, and where it must be found
    database_url: str, superuser: psycopg.Connection, change: str, name: str, text: str | None, rule: str, problem: str
) -> None:
    if "bytea" in change:
        superuser.execute("alter table agents drop constraint agents_name_check")
        superuser.execute("drop index agents_user_id_lower_name_idx")
    superuser.execute(change.encode())

    found = [f for f in contract.check(database_url) if f.path == f"sql/{name}.sql"]

    assert [f.rule for f in found] == [rule]
    assert problem in found[0].problem
    if text:
        assert found[0].line == line_of(name, text)
    else:
        assert found[0].line >= 1


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the SQL files, which may be broken, and statements to go with it."""
    folder = tmp_path / "sql"
    shutil.copytree(query.folder(), folder)
    originals = dict(query.statements)
    monkeypatch.setattr(query, "folder", lambda: folder)
    monkeypatch.setattr(query, "statements", {})
    for name, statement in originals.items():
        query.statements[name] = msgspec.structs.replace(statement, path=folder / f"{name}.sql")
    return folder


FUNCTIONS = {
    "agents/get": agents.get,
    "threads/list_for_user": threads.list_for_user,
    "api_keys/lookup": api_keys.lookup,
}


def broken(copy: Path, name: str, old: str, new: str) -> Statement:
    """The statement of a file in which a text was replaced, in place of the sound one."""
    path = copy / f"{name}.sql"
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))
    statement = query.load(FUNCTIONS[name].__wrapped__)  # type: ignore[attr-defined]  # functools.wraps sets it
    query.statements[name] = statement
    return statement


# The file, what is replaced by what in it, the text of the line that is named, the rule, and what is said.
FILE_FAULTS = [
    ("agents/get", "id, name, instr", "name, id, instr", "-- returns", "columns", "gives (name, id, instr"),
    ("agents/get", "id, name, instr", "id, instr", "-- returns", "columns", "Agent has (id, name, instr"),
    ("agents/get", "context, created_at", "context is null as context, created_at", "-- returns", "columns", "is bool"),
    ("agents/get", "where id = :id", "where length(id) = :id", ":id", "parameter", "int4"),
    ("agents/get", "from agents", "from agent", "from agent", "prepare", '"agent" does not exist'),
    ("agents/get", "deleted_at is null", "deleted_at is is null", "is is", "prepare", "syntax error"),
    ("agents/get", "uses: agents_pkey", "uses: agents_key", "-- uses", "uses", "there is no index agents_key"),
    ("api_keys/lookup", "role: crafely_auth", "role: crafely_app", None, "prepare", "permission denied"),
]


@pytest.mark.parametrize(("name", "old", "new", "text", "rule", "problem"), FILE_FAULTS)
def test_a_file_that_does_not_agree_is_found(
    database_url: str, copy: Path, name: str, old: str, new: str, text: str | None, rule: str, problem: str
) -> None:
    broken(copy, name, old, new)

    [finding] = contract.check(database_url)

    assert (finding.path, finding.rule) == (f"sql/{name}.sql", rule)
    assert problem in finding.problem
    assert text is None or finding.line == line_of(name, text)
    assert str(finding) == f"{finding.path}:{finding.line}: {finding.rule}: {finding.problem}"
    assert "\n" not in str(finding)


@pytest.mark.parametrize("stray", ["agents/forgotten.sql", "agents/get.sql~", "notes.txt", "nobody/get.sql"])
def test_a_file_that_no_function_claims_is_found(database_url: str, copy: Path, stray: str) -> None:
    (copy / stray).parent.mkdir(exist_ok=True)
    (copy / stray).write_text("select 1;\n")

    assert [(f.path, f.line, f.rule) for f in contract.check(database_url)] == [(f"sql/{stray}", 1, "signature")]


def test_a_finding_is_plain_data() -> None:
    finding = Finding("sql/agents/get.sql", 3, "columns", "too few")

    assert msgspec.json.encode(finding) == (
        b'{"path":"sql/agents/get.sql","line":3,"rule":"columns","problem":"too few"}'
    )
