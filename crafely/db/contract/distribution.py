"""Statements on the tables that may be spread over servers by user say whose rows they mean.

``sql/scale/citus.sql`` spreads them: a statement that compares ``user_id`` goes to the one server that has the rows,
any other to all of them. So what reads or changes one of them compares its ``user_id`` with a value, or with another
row's; what inserts gives one; and nothing moves a row to another user. What is about all users says why in its header.
"""

from collections.abc import Iterator

from crafely.db.contract.facts import Facts, Table
from crafely.db.contract.findings import Finding, at_table, at_text, at_word
from crafely.db.contract.nodes import Node, walk
from crafely.db.contract.tree import INNER, INSERT, LEFT, RELATION, RIGHT, UPDATE, bare, conjunction, entries, parts
from crafely.db.query import Statement

# The tables that are distributed, and by which column.
TABLES = ("usage", "usage_daily", "usage_events")
KEY = "user_id"
_RULE = "distribution"


def distribution(statement: Statement, tree: Node, facts: Facts) -> Iterator[Finding]:
    """Uses of a distributed table that do not say whose rows they are, and a header that says so for nothing."""
    found = list(dict.fromkeys(_across(statement, tree, facts)))
    if not statement.header.across_users:
        yield from found
    elif not found:
        yield at_word(statement, "across users", _RULE, "each row is some user's that it names; take the line out")
    for query in _queries(tree):
        yield from _writes(statement, query, facts)


def _queries(tree: Node) -> Iterator[Node]:
    return (node for node in walk(tree) if node[""] == "QUERY")


def _across(statement: Statement, tree: Node, facts: Facts) -> Iterator[Finding]:
    for query in _queries(tree):
        conditions = list(_conditions(query["jointree"]))
        for number in entries(query["jointree"]):
            table = _distributed(query, number, facts)
            if table is None:
                continue
            own = (number, _position(table), "0")
            if not any(number in held and _is_said(condition, own, facts) for condition, held in conditions):
                problem = f"uses {table.name}, which may be spread over servers by {KEY}, for all of them: say "
                why = f"«{KEY} = …» of a value or of another row, or in the header «-- across users: because …»"
                yield at_table(statement, table.name, _RULE, problem + why)


def _writes(statement: Statement, query: Node, facts: Facts) -> Iterator[Finding]:
    """An insert that names no user, and an update that gives rows to another one."""
    table = _distributed(query, query["resultRelation"], facts) if query["resultRelation"] != "0" else None
    if table is None:
        return
    position, inserts = _position(table), query["commandType"] == INSERT
    into = f"insert into {table.name} ("
    changed = (query["onConflict"] or {}).get("onConflictSet") if inserts else query["targetList"]
    if inserts and position not in {entry["resno"] for entry in query["targetList"] or ()}:
        yield at_text(statement, into, _RULE, f"inserts into {table.name} without {KEY}")
    if query["commandType"] in {INSERT, UPDATE} and position in {entry["resno"] for entry in changed or ()}:
        problem = f"sets {KEY} of {table.name}: another user's rows are on another server"
        yield at_text(statement, into if inserts else f"update {table.name}", _RULE, problem)


def _distributed(query: Node, number: str, facts: Facts) -> Table | None:
    """The table of an entry of a range table, where it is one of them or a partition of one."""
    entry = query["rtable"][int(number) - 1]
    table = facts.tables.get(int(entry["relid"])) if entry["rtekind"] == RELATION else None
    is_one = table is not None and table.schema == "public" and facts.roots.get(table.name, table.name) in TABLES
    return table if is_one else None


def _position(table: Table) -> str:
    (position,) = (str(number) for number, (name, _) in table.columns.items() if name == KEY)
    return position


def _conditions(node: Node) -> Iterator[tuple[Node, set[str]]]:
    """What must hold, taken apart at «and», and the entries of which no row comes by for which it does not."""
    if node[""] == "FROMEXPR":
        held = set(entries(node))
    elif node[""] == "JOINEXPR":
        sides = {INNER: (node["larg"], node["rarg"]), LEFT: (node["rarg"],), RIGHT: (node["larg"],)}
        held = {number for side in sides.get(node["jointype"], ()) for number in entries(side)}
    else:
        return
    yield from ((condition, held) for condition in conjunction(node["quals"]))
    for below in parts(node):
        yield from _conditions(below)


def _is_said(condition: Node, own: tuple[str, str, str], facts: Facts) -> bool:
    """Whether it compares the column with a parameter, or with a column of another row."""
    if condition[""] != "OPEXPR" or facts.operators.get(int(condition["opno"])) != "=":
        return False
    one, other = map(bare, condition["args"])
    for side, against in ((one, other), (other, one)):
        if side[""] == "VAR" and (side["varno"], side["varattno"], side["varlevelsup"]) == own:
            other_row = against[""] == "VAR" and (against["varno"], against["varlevelsup"]) != (own[0], own[2])
            return other_row or against[""] in {"PARAM", "CONST"}
    return False
