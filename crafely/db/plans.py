"""The plan of a statement, as the role that runs it gets it.

Sessions run generic plans (session.py), so a generic plan is what is shown unless values are given: the server plans
once, without looking at them (https://www.postgresql.org/docs/current/sql-prepare.html, Notes).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import pq
from psycopg import sql as names

from crafely.db.query import Statement

_NAME = b"crafely_plan"
_TIMESTAMPTZ = psycopg.adapters.types["timestamptz"].oid


class Plan(msgspec.Struct, frozen=True):
    """What EXPLAIN said. Partitions and their indexes go by the name of the table or index that they are a part of."""

    # The object of EXPLAIN (format json): {"Plan": {"Node Type": …, "Plans": […]}, …}.
    json: dict[str, Any]
    # The indexes that rows are found by, each once, in the plan's order; the arbiters of «on conflict» too.
    indexes: tuple[str, ...]
    # The tables that rows are read from, whatever way.
    tables: tuple[str, ...]
    # Those of them that are read from end to end: by a sequential scan, or through all of an index.
    scans: tuple[str, ...]


def explain(
    connection: psycopg.Connection[Any],
    statement: Statement,
    role: str | None = None,
    *,
    values: Sequence[str | None] | None = None,
    user_id: str | None = None,
    analyze: bool = False,
) -> Plan:
    """The plan of a statement as one of its roles (None: the header's first).

    Takes a connection of a login that may take the role on, in autocommit mode or within a transaction. Without
    ``values`` the plan is the generic one; with them, text as PostgreSQL reads it and in the order of
    ``statement.parameters``, it is the plan for these values. ``user_id`` is the user whom row-level security lets see
    rows. ``analyze`` runs the statement, with buffers, and rolls back whatever it did. Raises psycopg.Error when the
    server refuses the statement: it does not parse, or the role may not run it.
    """
    with as_role(connection, role or statement.header.roles[0]):
        if user_id is not None:
            connection.execute("select set_config('crafely.user_id', %s, true)", [user_id])
        return explain_prepared(connection, prepare(connection, statement.text), values=values, analyze=analyze)


@contextmanager
def as_role(connection: psycopg.Connection[Any], role: str) -> Iterator[None]:
    """What is done inside is done as this role, and rolled back."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(names.SQL("set local role {}").format(names.Identifier(role)))
            yield
    finally:
        # What is prepared outlives its transaction.
        held = "select from pg_prepared_statements where name = %s"
        if not connection.closed and connection.execute(held, [_NAME.decode()]).rowcount:
            connection.execute(b"deallocate " + _NAME)


def prepare(connection: psycopg.Connection[Any], text: bytes) -> pq.abc.PGresult:
    """Has the server parse a statement, and describe its parameters and columns. Raises psycopg.Error."""
    prepared = connection.pgconn.prepare(_NAME, text)
    if prepared.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.errors.error_from_result(prepared)
    return connection.pgconn.describe_prepared(_NAME)


def explain_prepared(
    connection: psycopg.Connection[Any],
    described: pq.abc.PGresult,
    *,
    values: Sequence[str | None] | None = None,
    analyze: bool = False,
    partitions: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of what ``prepare`` has prepared; see ``explain``. ``partitions`` is what ``partition_roots`` gave.

    Privileges are looked at only when a statement is about to run, which explaining it is.
    """
    if values is None:
        # The plan is made without them, but a time that is null would have every partition left out before it is shown.
        kinds = [described.param_type(index) for index in range(described.nparams)]
        given: list[names.Composable] = [names.SQL("now()" if kind == _TIMESTAMPTZ else "null") for kind in kinds]
    else:
        given = [names.Literal(value) for value in values]
    mode = "force_generic_plan" if values is None else "force_custom_plan"
    # As session.py has it.
    connection.execute(f"set local plan_cache_mode = {mode}; set local jit = off".encode())
    options = names.SQL("verbose, format json, analyze, buffers" if analyze else "verbose, format json")
    call = names.SQL("({})").format(names.SQL(", ").join(given)) if given else names.SQL("")
    command = names.SQL("explain ({}) execute {}{}").format(options, names.Identifier(_NAME.decode()), call)
    row = connection.execute(command).fetchone()
    if row is None:
        raise psycopg.DataError("the server gave no plan")
    return _read(row[0][0], partition_roots(connection) if partitions is None else partitions)


def partition_roots(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Every partition, of a table or of an index, and what it is a part of, by name."""
    return dict(
        connection.execute(
            "select c.relname, r.relname"
            " from pg_class c"
            " join pg_class r on r.oid = pg_partition_root(c.oid)"
            " where c.relispartition"
        ).fetchall()
    )


def nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every node of a plan, from the top: ``nodes(plan.json["Plan"])``."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def _read(json: dict[str, Any], roots: Mapping[str, str]) -> Plan:
    indexes: dict[str, None] = {}
    tables: dict[str, None] = {}
    scans: dict[str, None] = {}
    for node, limited in _with_limit(json["Plan"], limited=False):
        found = [*node.get("Conflict Arbiter Indexes", ()), *([node["Index Name"]] if "Index Name" in node else [])]
        indexes |= dict.fromkeys(roots.get(index, index) for index in found)
        if "Relation Name" in node and node["Node Type"] != "ModifyTable":
            table = roots.get(node["Relation Name"], node["Relation Name"])
            tables[table] = None
            if _is_whole(node, limited=limited):
                scans[table] = None
    return Plan(json, tuple(indexes), tuple(tables), tuple(scans))


def _with_limit(node: Mapping[str, Any], *, limited: bool) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Every node, and whether it is read only until a limit is reached: nothing sorts or sums it up before."""
    yield node, limited
    for below in node.get("Plans", ()):
        streams = node["Node Type"] in {"Limit", "Append", "Merge Append", "Result", "LockRows", "Subquery Scan"}
        yield from _with_limit(below, limited=streams and (limited or node["Node Type"] == "Limit"))


def _is_whole(node: Mapping[str, Any], *, limited: bool) -> bool:
    if node["Node Type"] in {"Index Scan", "Index Only Scan"}:
        return "Index Cond" not in node and not (limited and "Filter" not in node)
    return node["Node Type"] in {"Seq Scan", "Sample Scan"}
