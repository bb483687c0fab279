"""A file's parameters and columns against its signature: names, types, nullability, cardinality."""

import inspect
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from psycopg import pq

from crafely.db import query
from crafely.db.contract.cardinality import at_least_one, at_most_one
from crafely.db.contract.findings import Finding, at_text, at_word
from crafely.db.contract.nullability import Nullability
from crafely.db.contract.tree import Scope
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

# A row class and one of its fields.
Field = tuple[Any, str]


def parameters(statement: Statement, described: pq.abc.PGresult, types: Mapping[int, str]) -> Iterator[Finding]:
    """Parameters whose type is another one to the server."""
    for index, (name, kind) in enumerate(zip(statement.parameters, statement.parameter_types, strict=True)):
        server = types.get(described.param_type(index), "unknown")
        if server not in (allowed := _allowed(kind)):
            problem = f":{name} is {server} to the server, the signature says {_named(kind)} ({' or '.join(allowed)})"
            yield at_text(statement, f":{name}", "parameter", f"{problem}; change the signature or cast it here")


def columns(statement: Statement, described: pq.abc.PGresult, types: Mapping[int, str]) -> Iterator[Finding]:
    """Columns that are not the row's: other names, another order, another type."""
    given = [
        ((described.fname(i) or b"").decode(), types.get(described.ftype(i), "unknown"))
        for i in range(described.nfields)
    ]
    row = statement.row_type
    if row is None:
        if given:
            problem = f"gives {len(given)} columns, none were declared; drop them, or say in «returns» what comes"
            yield at_word(statement, "returns", "columns", problem)
        return
    wanted = fields(statement, len(given))
    if not issubclass(row, msgspec.Struct) and len(given) == 1:
        wanted = [(given[0][0], row)]
    if [name for name, _ in given] != [name for name, _ in wanted]:
        problem = f"gives ({', '.join(n for n, _ in given)}), {row.__name__} has ({', '.join(n for n, _ in wanted)})"
        yield at_word(statement, "returns", "columns", f"{problem}; they must be the same, in the same order")
        return
    for (name, kind), (_, server) in zip(wanted, given, strict=True):
        if server not in (allowed := _allowed(kind)):
            problem = f"column {name} is {server}, {row.__name__} says {_named(kind)} ({' or '.join(allowed)})"
            yield at_word(statement, "returns", "columns", f"{problem}; change the field or cast the column")


def fields(statement: Statement, count: int) -> list[tuple[str, Any]]:
    """Names and types of the columns that a statement should give; ``count`` is how many it gives.

    A last field that may be UNSET may be missing. The only column of a row that is no class has no name.
    """
    if statement.row_type is None or not issubclass(statement.row_type, msgspec.Struct):
        return [("", statement.row_type)] if statement.row_type else []
    found = msgspec.structs.fields(statement.row_type)
    wanted = [(field.name, field.type) for field in found]
    return wanted[:-1] if count < len(wanted) and found[-1].default is msgspec.UNSET else wanted


def nulls(statement: Statement, scope: Scope, seen: dict[Field, bool]) -> Iterator[Finding]:
    """Columns that may be null though their field may not, and declarations that are not needed.

    Notes in ``seen`` of each field that may be None whether anything gives it null.
    """
    answers = Nullability(scope, _nullable_parameters(statement))
    declared = dict.fromkeys(statement.header.not_null, False)
    given = answers.columns()
    for number, ((name, kind), may_be_null) in enumerate(zip(fields(statement, len(given)), given, strict=False)):
        column = name or scope.columns[number]["resname"]
        is_declared = column in declared
        declared[column] = True
        may_be_none = type(None) in get_args(kind)
        if may_be_none:
            field = (statement.row_type, name)
            seen[field] = seen.get(field, False) or (may_be_null and not is_declared)
        if is_declared and not may_be_null:
            problem = f"«{column}» is never null as it is; take it out of this line"
            yield at_word(statement, "not null", "nullability", problem)
        elif may_be_null and not is_declared and not may_be_none:
            where = f"{statement.row_type.__name__}.{name}" if name else "the signature"
            yield at_word(
                statement,
                "returns",
                "nullability",
                f"column {column} may be null, {where} says {_named(kind)}: write «{_named(kind)} | None» there, or, if"
                f" it never is, «-- not null: {column}» here",
            )
    for column in statement.header.not_null:
        if column not in {name or scope.columns[0]["resname"] for name, _ in fields(statement, len(given))}:
            yield at_word(statement, "not null", "nullability", f"there is no column {column}")
    yield from _nested(statement, answers, fields(statement, len(given)))


def undecided(statement: Statement, scope: Scope) -> list[str]:
    """The columns that «not null» should name: they may be null as far as can be seen, and their fields may not."""
    given = Nullability(scope, _nullable_parameters(statement)).columns()
    return [
        name or scope.columns[number]["resname"]
        for number, ((name, kind), may_be_null) in enumerate(zip(fields(statement, len(given)), given, strict=False))
        if may_be_null and type(None) not in get_args(kind)
    ]


def needless_none(seen: Mapping[Field, bool]) -> Iterator[Finding]:
    """Fields that may be None although no statement gives null for them."""
    for (row, name), is_null_somewhere in seen.items():
        if not is_null_somewhere:
            problem = f"{row.__name__}.{name} is never null, in no statement that gives it: drop «| None»"
            yield Finding(*_place(row, name), "nullability", problem)


def _nested(statement: Statement, answers: Nullability, wanted: list[tuple[str, Any]]) -> Iterator[Finding]:
    """Rows inside jsonb: the keys must be the fields of their class, as JSON has them."""
    for number, pairs in answers.objects():
        kind = query.without_unset(wanted[number][1]) if number < len(wanted) else None
        inner = next(
            (t for t in (kind, *get_args(kind)) if isinstance(t, type) and issubclass(t, msgspec.Struct)), None
        )
        if inner is None:
            continue
        found = msgspec.structs.fields(inner)
        if [key for key, _ in pairs] != [field.encode_name for field in found]:
            has, gives = ", ".join(field.encode_name for field in found), ", ".join(key for key, _ in pairs)
            problem = f"builds objects of ({gives}), {inner.__name__} has ({has}); they must be the same, in order"
            yield at_text(statement, "jsonb_build_object", "columns", problem)
            continue
        for (key, may_be_null), field in zip(pairs, found, strict=True):
            if may_be_null and type(None) not in get_args(field.type):
                problem = f"{key} may be null, {inner.__name__}.{field.name} says {_named(field.type)}"
                yield at_text(statement, f"'{key}'", "nullability", f"{problem}: write «| None» there")


def rows(statement: Statement, scope: Scope) -> Iterator[Finding]:
    """More rows, or fewer, than «returns» says."""
    says = statement.cardinality
    is_shown = says not in {"one", "maybe"} or (at_most_one(scope) and (says == "maybe" or at_least_one(scope)))
    if statement.header.one_row:
        if is_shown:
            problem = "the statement shows it by itself, or need not: take the line out"
            yield at_word(statement, "one row", "cardinality", problem)
    elif not is_shown and not at_most_one(scope):
        yield at_word(
            statement,
            "returns",
            "cardinality",
            f"says {says}, but nothing keeps it from giving several rows: compare every column of a unique index with "
            "«=», sum up, say «limit 1», return many, or say «-- one row: because …»",
        )
    elif not is_shown:
        problem = "says one, but it can give none: return maybe, or say «-- one row: because …»"
        yield at_word(statement, "returns", "cardinality", problem)


def _nullable_parameters(statement: Statement) -> set[int]:
    kinds = enumerate(statement.parameter_types, 1)
    return {number for number, kind in kinds if type(None) in get_args(kind)}


def _place(row: Any, name: str) -> tuple[str, int]:
    """The file and line of a field of a class."""
    lines, first = inspect.getsourcelines(row)
    path = Path(inspect.getsourcefile(row) or "")
    offset = next((n for n, line in enumerate(lines) if line.strip().startswith(f"{name}:")), 0)
    return "/".join(path.parts[-3:]), first + offset


def _allowed(kind: Any) -> tuple[str, ...]:
    """The server's names for a Python type; arrays are named with [] behind, as in ``Facts.types``."""
    if query.is_nested(kind):
        return ("jsonb",)
    kind = query.without_unset(kind)
    if get_origin(kind) is list:
        return tuple(f"{name}[]" for name in _TYPES.get(get_args(kind)[0], ()))
    return _TYPES.get(kind, ())


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
