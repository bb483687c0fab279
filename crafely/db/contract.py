"""What ``crafely check`` proves: that every SQL file and its signature agree, asked of a real, migrated database.

The server prepares each statement as the role that runs it and describes it: the number and types of its parameters,
the names and types of its columns
(https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY, message Describe). Then it explains
the statement, which asks for the role's privileges.
"""

from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import psycopg
from psycopg import pq

from crafely.db import query
from crafely.db.query import Statement

# The types of PostgreSQL, by name, that a Python type may meet.
_TYPES: dict[Any, tuple[str, ...]] = {
    str: ("text", "varchar"),
    int: ("int4", "int8"),
    bool: ("bool",),
    Decimal: ("numeric",),
    float: ("float8",),
    datetime: ("timestamptz",),
    date: ("date",),
    msgspec.Raw: ("jsonb",),
}


class Finding(msgspec.Struct, frozen=True):
    """Something that does not hold: where, which rule, and how to mend it."""

    path: str
    line: int
    rule: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.problem}"


def check(url: str, only: str | None = None) -> list[Finding]:
    """Holds the statements that the store declares against a migrated database.

    Takes the URL of a login that may take on every role, and a statement's name to check that one alone. Gives the
    findings, in the order of the files; none means that all agree.
    """
    findings = list(_orphans()) if only is None else []
    with psycopg.connect(url, autocommit=True) as connection:
        names = {t.oid: t.name for t in connection.adapters.types}
        names |= {t.array_oid: f"{t.name}[]" for t in connection.adapters.types}
        for name, statement in sorted(query.statements.items()):
            if only is None or name == only:
                findings += _check(connection, statement, names)
    return findings


def _orphans() -> Iterator[Finding]:
    """SQL files that no function claims, and what is no SQL file at all."""
    claimed = {statement.path for statement in query.statements.values()}
    for path in sorted(query.folder().rglob("*")):
        if path.is_file() and path not in claimed and path.name != "README.md":
            problem = "no function of the store claims this file; delete it, or give it a signature"
            yield Finding(_shown(path), 1, "signature", problem)


def _check(connection: psycopg.Connection[Any], statement: Statement, names: dict[int, str]) -> Iterator[Finding]:
    for role in statement.header.roles:
        connection.execute(f"set role {role}".encode())  # one of header.ROLES, nothing from outside
        try:
            prepared = connection.pgconn.prepare(b"contract", statement.text)
            if prepared.status != pq.ExecStatus.COMMAND_OK:
                yield _refused(statement, role, prepared)
                continue
            described = connection.pgconn.describe_prepared(b"contract")
            # Privileges are looked at only when a statement is about to run, which explaining it is.
            values = f"({', '.join(['null'] * described.nparams)})" if described.nparams else ""
            explained = connection.pgconn.exec_(f"explain execute contract {values}".encode())
            connection.pgconn.exec_(b"deallocate contract")
            if explained.status != pq.ExecStatus.TUPLES_OK:
                yield _refused(statement, role, explained)
                continue
        finally:
            connection.execute("reset role")
        yield from _parameters(statement, described, names)
        yield from _columns(statement, described, names)
        yield from _indexes(connection, statement)


def _refused(statement: Statement, role: str, result: pq.abc.PGresult) -> Finding:
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
    position = int(result.error_field(pq.DiagnosticField.STATEMENT_POSITION) or 1)
    # The text sent begins with the name in a comment and has $n for :name, which changes no line.
    line = statement.path.read_text().count("\n") - statement.text.decode().count("\n")
    line += statement.text.decode()[:position].count("\n")
    return Finding(_shown(statement.path), max(line, 1), "prepare", f"as {role}: {message}")


def _parameters(statement: Statement, described: pq.abc.PGresult, names: dict[int, str]) -> Iterator[Finding]:
    for index, (name, kind) in enumerate(zip(statement.parameters, statement.parameter_types, strict=True)):
        server = names.get(described.param_type(index), "unknown")
        if server not in (allowed := _allowed(kind)):
            problem = f":{name} is {server} to the server, the signature says {_named(kind)} ({' or '.join(allowed)})"
            yield Finding(_shown(statement.path), _line_of(statement, f":{name}"), "parameter", problem)


def _columns(statement: Statement, described: pq.abc.PGresult, names: dict[int, str]) -> Iterator[Finding]:
    line = statement.header.lines["returns"]
    given = [
        ((described.fname(i) or b"").decode(), names.get(described.ftype(i), "unknown"))
        for i in range(described.nfields)
    ]
    row = statement.row_type
    if row is None:
        if given:
            yield Finding(_shown(statement.path), line, "columns", f"gives {len(given)} columns, none were declared")
        return
    if not issubclass(row, msgspec.Struct):
        wanted: list[tuple[str, Any]] = [(given[0][0] if given else "", row)]
    else:
        wanted = [(field.name, field.type) for field in msgspec.structs.fields(row)]
        if len(given) < len(wanted) and msgspec.structs.fields(row)[-1].default is msgspec.UNSET:
            wanted.pop()
    if [name for name, _ in given] != [name for name, _ in wanted]:
        problem = f"gives ({', '.join(n for n, _ in given)}), {row.__name__} has ({', '.join(n for n, _ in wanted)})"
        yield Finding(_shown(statement.path), line, "columns", problem)
        return
    for (name, kind), (_, server) in zip(wanted, given, strict=True):
        if server not in (allowed := _allowed(kind)):
            problem = f"column {name} is {server}, {row.__name__} says {_named(kind)} ({' or '.join(allowed)})"
            yield Finding(_shown(statement.path), line, "columns", problem)


def _indexes(connection: psycopg.Connection[Any], statement: Statement) -> Iterator[Finding]:
    for index in statement.header.uses:
        found = connection.execute("select to_regclass(%s) is not null", [index]).fetchone()
        if found != (True,):
            line = statement.header.lines["uses"]
            yield Finding(_shown(statement.path), line, "uses", f"there is no index {index}")


def _allowed(kind: Any) -> tuple[str, ...]:
    """The server's names for a Python type; arrays are named with [] behind, as here."""
    if query.is_nested(kind):
        return ("jsonb",)
    kind = query.without_unset(kind)
    if get_origin(kind) is list:
        return tuple(f"{name}[]" for name in _TYPES.get(get_args(kind)[0], ()))
    return _TYPES.get(kind, ())


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _line_of(statement: Statement, text: str) -> int:
    source = statement.path.read_text()
    return source.count("\n", 0, max(source.find(text), 0)) + 1


def _shown(path: Path) -> str:
    return f"sql/{path.relative_to(query.folder())}"
