"""The server's own parse tree of a statement, and what its names stand for.

A function in pg_temp whose body is the statement («begin atomic», since PostgreSQL 14) is parsed when it is created,
and keeps its tree: nothing here parses SQL. The fields are those of src/include/nodes/parsenodes.h and primnodes.h.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import psycopg
from psycopg import pq

from crafely.db.contract.facts import Facts, Table
from crafely.db.contract.nodes import Node, Value, parse, walk

# commandType, rtekind and jointype, by number; a number that no version has had before is none of them.
SELECT, UPDATE, INSERT, DELETE = "1", "2", "3", "4"
RELATION, SUBQUERY, JOIN, FUNCTION, VALUES, CTE, GROUP = "0", "1", "2", "3", "5", "6", "9"
INNER, LEFT, FULL, RIGHT = "0", "1", "2", "3"
# Expressions that change the type of their argument and nothing else.
WRAPPERS = {
    "RELABELTYPE",
    "COERCEVIAIO",
    "ARRAYCOERCEEXPR",
    "CONVERTROWTYPEEXPR",
    "COLLATEEXPR",
    "COLLATE",
    "COERCETODOMAIN",
}


def read(connection: psycopg.Connection[Any], described: pq.abc.PGresult, text: bytes) -> Node:
    """The QUERY node of a statement that ``plans.prepare`` has described. Raises psycopg.Error.

    Leaves a function behind in pg_temp: to be called in a transaction that is rolled back.
    """

    def named(oids: list[int]) -> list[str]:
        query = "select format_type(t, null) from unnest(%s::oid[]) with ordinality as u (t, n) order by n"
        return [name for (name,) in connection.execute(query, [oids]).fetchall()]

    parameters = named([described.param_type(index) for index in range(described.nparams)])
    columns = named([described.ftype(index) for index in range(described.nfields)])
    returns = "void" if not columns else f"setof {columns[0]}" if len(columns) == 1 else "setof record"
    head = f"create or replace function pg_temp.crafely_tree({', '.join(parameters)}) returns {returns} language sql"
    # A last line that is a comment must not swallow what follows.
    body = b" begin atomic " + text.rstrip().rstrip(b";") + b"\n; end"
    connection.execute(head.encode() + body)
    source = (
        "select prosqlbody::text from pg_proc where pronamespace = pg_my_temp_schema() and proname = 'crafely_tree'"
    )
    ((tree,),) = connection.execute(source.encode()).fetchall()
    return parse(tree)[0][0]  # type: ignore[no-any-return]  # the statements of the body, of which there is one


class Scope:
    """A query of a tree, with what is known of the database and of the queries around it."""

    def __init__(self, query: Node, facts: Facts, above: "Scope | None" = None) -> None:
        self.query = query
        self.facts = facts
        self.above = above

    @property
    def command(self) -> str:
        """SELECT, UPDATE, INSERT or DELETE."""
        return str(self.query["commandType"])

    @property
    def columns(self) -> list[Node]:
        """The target entries of what it gives, in order."""
        listed = self.query["targetList"] if self.command == SELECT else self.query["returningList"]
        return [entry for entry in listed or () if entry["resjunk"] == "false"]

    def up(self, levels: int) -> "Scope | None":
        """The query so many levels above."""
        scope: Scope | None = self
        for _ in range(levels):
            scope = scope and scope.above
        return scope

    def entry(self, number: str) -> Node:
        """An entry of the range table: a table, a subquery, a join …"""
        found: Node = self.query["rtable"][int(number) - 1]
        return found

    def table(self, number: str) -> Table | None:
        """The table of an entry."""
        entry = self.entry(number)
        return self.facts.tables.get(int(entry["relid"])) if entry["rtekind"] == RELATION else None

    def below(self, entry: Node) -> "Scope | None":
        """The query of an entry that is a subquery or a common table expression."""
        if entry["rtekind"] == SUBQUERY:
            return Scope(entry["subquery"], self.facts, self)
        if entry["rtekind"] == CTE:
            owner = self.up(int(entry["ctelevelsup"]))
            for cte in (owner.query["cteList"] if owner else None) or ():
                if cte["ctename"] == entry["ctename"]:
                    return Scope(cte["ctequery"], self.facts, owner)
        return None

    def branches(self) -> list["Scope"]:
        """The queries of a union, intersection or difference; none where it is no such thing."""
        return [
            Scope(self.entry(node["rtindex"])["subquery"], self.facts, self)
            for node in walk(self.query["setOperations"])
            if node[""] == "RANGETBLREF"
        ]

    @cached_property
    def conjuncts(self) -> list[Node]:
        """What holds for every row that comes out: conditions of «where» and of inner joins, taken apart at «and»."""
        return list(_conjuncts(self.query["jointree"]))

    @cached_property
    def nulled(self) -> set[str]:
        """The entries that an outer join may fill up with nulls, by number."""
        return set(_nulled(self.query["jointree"], nulled=False))

    @cached_property
    def proved(self) -> set[tuple[str, str]]:
        """Columns, by the numbers of entry and column, of which a null would have kept the row from coming out."""
        proved: set[tuple[str, str]] = set()
        for condition in self.conjuncts:
            if condition[""] == "NULLTEST" and condition["nulltesttype"] == "1":
                proved |= _own(bare(condition["arg"]))
            elif condition[""] == "OPEXPR" and self.facts.operators.get(int(condition["opno"])) in COMPARISONS:
                for argument in condition["args"]:
                    proved |= _own(bare(argument))
        if self.command == UPDATE:
            # What comes back is the new row: of a column that was set the condition said nothing.
            written = {entry["resno"] for entry in self.query["targetList"]}
            proved = {(e, c) for e, c in proved if e != self.query["resultRelation"] or c not in written}
        return proved


# Strict, and never null for two values.
COMPARISONS = {"=", "<>", "<", "<=", ">", ">=", "~~", "~"}


def bare(expression: Node) -> Node:
    """An expression without what only changes its type."""
    while expression[""] in WRAPPERS:
        expression = expression["arg"]
    return expression


def conjunction(condition: Node | None) -> Iterator[Node]:
    """A condition, taken apart at «and»."""
    if condition is None:
        return
    if condition[""] == "BOOLEXPR" and condition["boolop"] == "and":
        for part in condition["args"]:
            yield from conjunction(part)
    else:
        yield condition


def entries(node: Node) -> Iterator[str]:
    """The numbers of what a FROMEXPR, or a part of it, reads from."""
    if node[""] == "RANGETBLREF":
        yield node["rtindex"]
    for below in parts(node):
        yield from entries(below)


def parts(node: Node) -> list[Node]:
    """What a FROMEXPR or a JOINEXPR is made of."""
    return [node["larg"], node["rarg"]] if node[""] == "JOINEXPR" else list(node.get("fromlist") or ())


def _own(expression: Node) -> set[tuple[str, str]]:
    if expression[""] == "VAR" and expression["varlevelsup"] == "0":
        return {(expression["varno"], expression["varattno"])}
    return set()


def _conjuncts(node: Node) -> Iterator[Node]:
    if node[""] == "FROMEXPR":
        yield from conjunction(node["quals"])
        for below in node["fromlist"] or ():
            yield from _conjuncts(below)
    elif node[""] == "JOINEXPR":
        if node["jointype"] == INNER:
            yield from conjunction(node["quals"])
        if node["jointype"] in {INNER, LEFT}:
            yield from _conjuncts(node["larg"])
        if node["jointype"] in {INNER, RIGHT}:
            yield from _conjuncts(node["rarg"])


def _nulled(node: Value, *, nulled: bool) -> Iterator[str]:
    if node[""] == "RANGETBLREF":
        if nulled:
            yield node["rtindex"]
    elif node[""] == "FROMEXPR":
        for below in node["fromlist"] or ():
            yield from _nulled(below, nulled=nulled)
    elif node[""] == "JOINEXPR":
        if nulled:
            yield node["rtindex"]
        yield from _nulled(node["larg"], nulled=nulled or node["jointype"] not in {INNER, LEFT})
        yield from _nulled(node["rarg"], nulled=nulled or node["jointype"] not in {INNER, RIGHT})
