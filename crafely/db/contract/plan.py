"""The plan of a statement against its header: the indexes it names, the tables it may read from end to end."""

from collections.abc import Callable, Iterator

from crafely.db.contract.facts import GROWS, Facts
from crafely.db.contract.findings import Finding, at_table, at_word
from crafely.db.plans import Plan
from crafely.db.query import Statement


def indexes(
    statement: Statement, plan: Plan, facts: Facts, role: str, unguarded: Callable[[], Plan]
) -> Iterator[Finding]:
    """What «uses» names and the plan has not, and what the plan finds rows by and «uses» does not name.

    ``unguarded`` gives the plan without row-level security, which is asked for only when an index is missed.
    """
    uses = statement.header.uses
    for index in uses:
        if index not in facts.indexes:
            yield at_word(statement, "uses", "uses", f"there is no index {index}; {_instead(plan)}")
        elif index not in plan.indexes:
            problem = f"the plan of {role} is without {index}: {_instead(plan)}"
            if index in unguarded().indexes:
                # A condition that might tell somebody of other users' rows is looked at last, and in no index:
                # https://www.postgresql.org/docs/current/rules-privileges.html
                problem = (
                    f"row-level security costs {role} the index {index}: a function of a column that is not leakproof "
                    f"is in no index condition; {_instead(plan)}"
                )
            yield at_word(statement, "uses", "uses", problem)
    named = {facts.tables[facts.indexes[index].table].name for index in uses if index in facts.indexes}
    allowed = {table for table, _ in statement.header.scans}
    for table in plan.tables:
        if table in facts.growing() and table not in {*named, *allowed, *plan.scans}:
            found = _indexes_of(table, plan, facts)
            line = f"-- uses: {', '.join([*uses, *found])}"
            yield at_word(
                statement, "uses", "uses", f"reads {table} by {' and '.join(found)}, which must be said: «{line}»"
            )


def scans(statement: Statement, plan: Plan, facts: Facts, role: str) -> Iterator[Finding]:
    """Tables that are read from end to end and should not be, and the other way round."""
    allowed = {table for table, _ in statement.header.scans}
    for table in plan.scans:
        if table in facts.growing() and table not in allowed:
            yield at_table(
                statement,
                table,
                "scans",
                f"reads {table}, which grows, from end to end as {role}: compare what an index begins with, or say "
                f"«-- scans: {table}, because …»",
            )
    for table in sorted(allowed - set(plan.scans)):
        has = f"is read by {_indexes_of(table, plan, facts)[0]}" if table in plan.tables else "is not read"
        yield at_word(statement, f"scans {table}", "scans", f"{table} {has}; take the line out")


def empty(facts: Facts) -> Iterator[Finding]:
    """Tables of which there are too few rows for a plan to say anything."""
    for table in facts.tables.values():
        # yoyo's own: a row a migration.
        if table.schema == "public" and table.is_ours and table.rows < GROWS:
            problem = (
                f"the scratch database has {max(table.rows, 0):.0f} rows of {table.name}, which says nothing of plans"
            )
            yield Finding(
                "crafely/db/filling", 1, "filling", f"{problem}: add a file that fills it with {GROWS} or more"
            )


def _indexes_of(table: str, plan: Plan, facts: Facts) -> list[str]:
    known = facts.indexes
    return [index for index in plan.indexes if index in known and facts.tables[known[index].table].name == table]


def _instead(plan: Plan) -> str:
    parts = [f"uses {', '.join(plan.indexes)}" if plan.indexes else ""]
    parts.append(f"reads all of {', '.join(plan.scans)}" if plan.scans else "")
    return f"it {' and '.join(filter(None, parts)) or 'uses no index'}; mend the statement, or the line"
