"""Statements of users name the user themselves, on every table that row-level security guards.

Row-level security would do; but a reader should see it, and the planner uses it.
"""

from collections.abc import Iterator

from crafely.db.contract.facts import Facts, Table
from crafely.db.contract.findings import Finding, at_table
from crafely.db.contract.nodes import Node, walk
from crafely.db.contract.tree import RELATION, bare, entries
from crafely.db.header import ROLES
from crafely.db.query import Statement

_TENANT = "user_id"


def tenancy(statement: Statement, tree: Node, facts: Facts) -> Iterator[Finding]:
    """Tables of users that a statement of users reads or changes without comparing whose rows they are."""
    if ROLES[0] not in statement.header.roles:
        return
    for query in walk(tree):
        if query[""] != "QUERY":
            continue
        # The table that is inserted into is not among them: its column may not be null.
        for number in entries(query["jointree"]):
            entry = query["rtable"][int(number) - 1]
            table = facts.tables.get(int(entry["relid"])) if entry["rtekind"] == RELATION else None
            if table is None or not _is_guarded(table) or _is_compared(query, number, table, facts):
                continue
            problem = f"uses {table.name} without comparing {_TENANT}: say «{_TENANT} = …»"
            yield at_table(statement, table.name, "tenancy", f"{problem}, row-level security is only the second line")


def _is_guarded(table: Table) -> bool:
    return table.has_row_security and _TENANT in {name for name, _ in table.columns.values()}


def _is_compared(query: Node, number: str, table: Table, facts: Facts) -> bool:
    """Whether a condition of the query itself says «user_id = …» of an entry of its range table."""
    (column,) = (str(position) for position, (name, _) in table.columns.items() if name == _TENANT)
    own = (number, column, "0")
    return any(
        (side["varno"], side["varattno"], side["varlevelsup"]) == own
        for node in walk(query["jointree"], into_queries=False)
        if node[""] == "OPEXPR" and facts.operators.get(int(node["opno"])) == "="
        for side in map(bare, node["args"])
        if side[""] == "VAR"
    )
