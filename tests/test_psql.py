"""Every statement file, as a DBA has it in psql: by -f after \\set, and pasted behind «prepare»."""

import re
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from subprocess import CompletedProcess
from typing import Any, get_origin

import msgspec
import psycopg
import pytest

from crafely.db import query
from crafely.db.query import Statement
from crafely.store import __all__ as nouns  # importing the store registers its statements

Run = Callable[..., CompletedProcess[str]]

# What \set is given for a parameter of a type; such a value is spliced as it stands, so it brings its own quotes.
LITERALS: dict[Any, str] = {
    str: "'x'",
    int: "1",
    bool: "true",
    Decimal: "1.50",
    datetime: "'2026-01-01Z'",
    date: "'2026-01-01'",
    msgspec.Raw: "'{}'",
    list: "'{}'",
}
# Where the type alone does not say what fits.
SPECIAL = {
    "user_id": "'alice'",
    "records": "'[]'",
    "tools": "'[]'",
    "package_id": "'pkg_1'",
    "interval": "'month'",
    "agent_id": "null",
    "months_kept": "12",
    "status": "201",
}

IDENTITY = "select set_config('crafely.user_id', 'alice', false) \\g /dev/null\n"


def literal(name: str, kind: Any) -> str:
    kind = query.without_unset(kind)
    return SPECIAL.get(name) or LITERALS[get_origin(kind) or kind]


def set_for_psql(value: str) -> str:
    """As \\set takes it: within quotes, a quote is doubled."""
    return "'" + value.replace("'", "''") + "'"


@pytest.fixture(autouse=True)
def package(superuser: psycopg.Connection) -> None:
    superuser.execute("insert into packages (id, name, price) values ('pkg_1', 'basic', 1)")


def parameters(statement: Statement) -> list[tuple[str, str]]:
    """Names and literals, in the order of their numbers."""
    pairs = zip(statement.parameters, statement.parameter_types, strict=True)
    return [(name, literal(name, kind)) for name, kind in pairs]


def test_there_are_statements_to_test() -> None:
    assert {name.partition("/")[0] for name in query.statements} == set(nouns)


def test_every_file_runs_by_f_after_set_of_its_parameters(psql: Run) -> None:
    script = IDENTITY
    for name, statement in sorted(query.statements.items()):
        for role in statement.header.roles:
            script += f"\\echo {name}\nbegin;\nset local role {role};\n"
            script += "".join(f"\\set {p} {set_for_psql(v)}\n" for p, v in parameters(statement))
            script += f"\\i {statement.path}\nrollback;\n"
            script += "".join(f"\\unset {p}\n" for p, _ in parameters(statement))

    done = psql(script)

    assert (done.returncode, done.stderr) == (0, "")
    assert set(re.findall(r"^\w+/\w+$", done.stdout, re.MULTILINE)) == set(query.statements)


def test_every_file_can_be_pasted_behind_prepare(psql: Run) -> None:
    script = IDENTITY
    for name, statement in sorted(query.statements.items()):
        values = parameters(statement)
        script += f"\\echo {name}\nbegin;\nset local role {statement.header.roles[0]};\n"
        script += "".join(f"\\set {p} ${number}\n" for number, (p, _) in enumerate(values, 1))
        script += f"prepare q as\n{statement.path.read_text()}\n"
        arguments = f"({', '.join(v for _, v in values)})" if values else ""
        script += f"execute q{arguments};\nrollback;\ndeallocate q;\n"
        script += "".join(f"\\unset {p}\n" for p, _ in values)

    done = psql(script)

    assert (done.returncode, done.stderr) == (0, "")
    assert set(re.findall(r"^\w+/\w+$", done.stdout, re.MULTILINE)) == set(query.statements)


def test_a_file_by_f_gives_what_the_store_gives(psql: Run, superuser: psycopg.Connection) -> None:
    superuser.execute("insert into agents (id, name, instructions, user_id) values ('agnt_1', 'hers', '', 'alice')")
    script = f"{IDENTITY}set role crafely_app;\n\\set id '''agnt_1'''\n\\set user_id '''alice'''\n"

    done = psql(f"{script}\\t\n\\a\n\\i {query.statements['agents/get'].path}\n")

    assert done.stdout.startswith("agnt_1|hers|")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["agents/get", "threads/list_for_agent"])
def test_psql_stops_at_a_parameter_that_was_not_set(psql: Run, name: str) -> None:
    """So the tests above do fail when a file and its parameters do not fit."""
    done = psql(f"\\i {query.statements[name].path}\n")

    assert done.returncode != 0
    assert 'syntax error at or near ":"' in done.stderr
