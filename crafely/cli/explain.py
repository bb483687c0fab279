"""``crafely explain``: the plan of a statement as the role that runs it, next to what it promises and who calls it.

Without values the plan is the generic one, which sessions run; with them the plan for these values stands beside it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

import msgspec
import psycopg
from psycopg.types import TypesRegistry
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from crafely.cli import plan_tree
from crafely.cli.entries import Column, Entry, entry
from crafely.cli.place import add_place, place
from crafely.cli.statements import UsageError, find, perhaps
from crafely.cli.tables import PIPE_WIDTH
from crafely.cli.target import Target, require_schema
from crafely.config import Settings, load
from crafely.db import plans
from crafely.db.plans import Plan
from crafely.db.query import Statement
from crafely.db.session import connect

# The parameter that says whose rows row-level security shows.
IDENTITY = "user_id"


class Explained(msgspec.Struct, frozen=True, rename="camel"):
    """A plan, in lines for people and as EXPLAIN gave it."""

    indexes: tuple[str, ...]
    scans: tuple[str, ...]
    lines: list[str]
    json: dict[str, Any]


class Explanation(msgspec.Struct, frozen=True, rename="camel"):
    """What the command prints."""

    statement: Entry
    # Of each parameter, the type that the server gives it.
    types: dict[str, str]
    server: str
    role: str
    user_id: str | None
    generic: Explained
    # For the values that were given, and run when that was asked for.
    for_values: Explained | None
    # Whether the two plans do the same.
    same: bool | None


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser("explain", help="the plan of a statement, and who calls it", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="such as threads/list_for_agent")
    parser.add_argument(
        "--param",
        action="append",
        dest="params",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter's value, as PostgreSQL reads it; NAME alone is null; may be repeated",
    )
    parser.add_argument("--user", metavar="ID", help="whose rows it sees (default: the parameter user_id)")
    parser.add_argument("--role", metavar="ROLE", help="one of the statement's roles (default: the first)")
    parser.add_argument(
        "--analyze", action="store_true", help="run it, count the buffers, and roll back whatever it wrote"
    )
    add_place(parser, optional=False)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explains; exit code 2 for a name or a value that does not fit, 1 when the server refuses the statement."""
    try:
        statement = find(arguments.name)
        role = _role(statement, arguments.role)
        values = _values(statement, arguments.params, arguments.user, run_it=arguments.analyze)
        settings = load(database_url=arguments.database or None)
        with place(settings, filled=arguments.filled) as found:
            explanation = _explain(settings, found, statement, role, values, arguments)
    except UsageError as error:
        print(f"crafely: {error}", file=sys.stderr)
        return 2
    except psycopg.Error as error:
        # A value that its type refuses is the caller's mistake, all else the database's.
        reason = error.diag.message_primary or str(error)
        print(f"crafely: {arguments.name}: {' '.join(reason.split())}", file=sys.stderr)
        return 2 if isinstance(error, psycopg.DataError) else 1
    if arguments.json:
        print(msgspec.json.encode(explanation).decode())
    else:
        _show(explanation, values)
    return 0


def _role(statement: Statement, wanted: str | None) -> str:
    roles = statement.header.roles
    if wanted is not None and wanted not in roles:
        raise UsageError(f"--role: {statement.name} runs as {' or '.join(roles)}, not as {wanted}")
    return wanted or roles[0]


def _values(
    statement: Statement, params: Sequence[str], user_id: str | None, *, run_it: bool
) -> dict[str, str | None] | None:
    """The values by name, in the statement's order; None where none are given and none are needed.

    What may be None and is not given is null, and user_id is --user where that is given.
    """
    given: dict[str, str | None] = {}
    for param in params:
        name, equals, value = param.partition("=")
        if name not in statement.parameters:
            near = get_close_matches(name, statement.parameters, n=2, cutoff=0.5)
            takes = f"it takes {', '.join(statement.parameters) or 'none'}"
            raise UsageError(f"--param {name}: {statement.name} has no such parameter; {perhaps(near, takes)}")
        if name in given:
            raise UsageError(f"--param {name}: given twice")
        given[name] = value if equals else None
    if not given and not run_it:
        return None
    if IDENTITY in statement.parameters and user_id is not None:
        given.setdefault(IDENTITY, user_id)
    kinds = dict(zip(statement.parameters, statement.parameter_types, strict=True))
    if missing := [name for name, kind in kinds.items() if name not in given and type(None) not in get_args(kind)]:
        raise UsageError(f"{statement.name}: a value is missing: {' '.join(f'--param {one}=…' for one in missing)}")
    return {name: given.get(name) for name in statement.parameters}


def _explain(
    settings: Settings,
    found: Target,
    statement: Statement,
    role: str,
    values: dict[str, str | None] | None,
    arguments: argparse.Namespace,
) -> Explanation:
    user_id = arguments.user if arguments.user is not None else (values or {}).get(IDENTITY)
    # What is run for a look must not hold up those who work.
    limit = settings.statement_timeout
    with connect(found.url, application_name="crafely explain", statement_timeout=limit) as connection:
        require_schema(found)
        with plans.as_role(connection, role):
            described = plans.prepare(connection, statement.text)
        kinds = connection.adapters.types
        oids = [described.param_type(index) for index in range(described.nparams)]
        generic = plans.explain(connection, statement, role, user_id=user_id)
        chosen = None
        if values is not None:
            given = list(values.values())
            chosen = plans.explain(
                connection, statement, role, values=given, user_id=user_id, analyze=arguments.analyze
            )
        return Explanation(
            statement=entry(statement),
            types={name: _type(kinds, oid) for name, oid in zip(statement.parameters, oids, strict=True)},
            server=connection.info.parameter_status("server_version") or "",
            role=role,
            user_id=user_id,
            generic=_explained(generic, statement.parameters),
            # Its values stand in the plan, and one of them may look like a parameter.
            for_values=_explained(chosen, ()) if chosen is not None else None,
            same=plan_tree.shape(generic) == plan_tree.shape(chosen) if chosen is not None else None,
        )


def _type(kinds: TypesRegistry, oid: int) -> str:
    info = kinds.get(oid)
    if info is None:
        return str(oid)
    return f"{info.name}[]" if oid == info.array_oid else str(info.name)


def _explained(plan: Plan, parameters: Sequence[str]) -> Explained:
    return Explained(plan.indexes, plan.scans, plan_tree.lines(plan, parameters), plan.json)


def _show(explanation: Explanation, values: dict[str, str | None] | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    one = explanation.statement
    console.print(f"[bold]{escape(one.name)}[/]\n{escape(one.description)}\n")
    for label, lines in _contract(explanation, values):
        for number, line in enumerate(lines):
            console.print(f"[dim]{'' if number else label:12}[/]{line}", soft_wrap=True)
    chosen = explanation.for_values
    if chosen is None or not explanation.same:
        _plan(console, f"Generic plan, which sessions run, on PostgreSQL {explanation.server}", explanation.generic)
    if chosen is not None:
        same = "; the generic plan, which sessions run, does the same" if explanation.same else ""
        _plan(console, f"Plan for these values on PostgreSQL {explanation.server}{same}", chosen)


def _contract(explanation: Explanation, values: dict[str, str | None] | None) -> Iterator[tuple[str, list[str]]]:
    """What the statement promises, as labels with lines, and whether the plan keeps it."""
    one = explanation.statement
    plan = explanation.generic
    yield "file", [one.path]
    yield "signature", [str(one.signature.place)]
    yield "returns", [escape(one.returns), *(f"  {escape(f'{c.name}: {c.type}')}" for c in one.columns)]
    if one.one_row:
        yield "one row", [escape(f"because {one.one_row}")]
    if one.not_null:
        yield "never null", [", ".join(one.not_null)]
    yield "parameters", [_parameter(explanation, column, values) for column in one.parameters] or ["none"]
    user = f", for user {explanation.user_id}" if explanation.user_id is not None else ""
    yield "role", [escape(explanation.role + user)]
    if one.uses:
        missed = "  [yellow]not in this plan[/]; tables of few rows are read otherwise: see --filled"
        yield "uses", [index + ("" if index in plan.indexes else missed) for index in one.uses]
    said = [f"{scan.table}, because {scan.because}" for scan in one.scans]
    found = [f"[red]{table}, which the file does not say[/]" for table in plan.scans if table not in _tables(one)]
    if said or found:
        yield "reads all of", [*map(escape, said), *found]
    yield "called by", [f"{escape(caller.name)}  [dim]{caller.place}[/]" for caller in one.callers]
    yield "called at", [f"{site.place}  [dim]{escape(site.function)}[/]" for site in one.sites]


def _tables(one: Entry) -> set[str]:
    return {scan.table for scan in one.scans}


def _parameter(explanation: Explanation, column: Column, values: dict[str, str | None] | None) -> str:
    said = f":{column.name}  [dim]{escape(column.type)}, {escape(explanation.types[column.name])} to the server[/]"
    if values is None:
        return said
    value = values[column.name]
    return f"{said}  = {'null' if value is None else escape(value)}"


def _plan(console: Console, title: str, plan: Explained) -> None:
    console.print(f"\n[bold]{escape(title)}[/]")
    for line in plan.lines:
        text = Text(line)
        text.highlight_regex(r"(?<=using )\S+", "green")
        text.highlight_regex(r"Seq Scan on \S+", "yellow")
        text.highlight_regex(r"\(cost .*", "dim")
        # Broken by the terminal, not here: a line that is copied stays one.
        console.print(text, soft_wrap=True)
