"""Statements that a standby may answer write nothing and lock nothing: a standby refuses both.

Only the answers count, so what may give another value at each call, and do who knows what, is no part of them either:
a volatile function may write (nextval, set_config) or lock (pg_advisory_lock), and nothing in a tree tells.
"""

from collections.abc import Iterator

from crafely.db.contract.facts import Facts
from crafely.db.contract.findings import Finding, at_word
from crafely.db.contract.nodes import Node, walk
from crafely.db.contract.tree import SELECT
from crafely.db.query import Statement


def replica(statement: Statement, tree: Node, facts: Facts) -> Iterator[Finding]:
    """What speaks against «reads: replica», where the header says so."""
    if not statement.header.replica:
        return
    for node in walk(tree):
        if node[""] == "QUERY" and node["commandType"] != SELECT:
            yield _finding(statement, "it writes")
        elif node[""] == "QUERY" and node["rowMarks"]:
            yield _finding(statement, "it locks rows")
        elif node[""] == "FUNCEXPR":
            function = facts.functions.get(int(node["funcid"]))
            if function is not None and function.is_volatile:
                yield _finding(statement, f"it calls {function.name}, which is volatile and may do anything")


def _finding(statement: Statement, reason: str) -> Finding:
    return at_word(statement, "reads", "replica", f"no standby can answer it, for {reason}: leave «reads: replica» out")
