"""Fills in what a machine can know of a header: «uses» from the plan, «not null» from the parse tree.

What it writes is to be reviewed: that a column is never null is a promise of the statement's author, and an index that
the plan happens to use need not be the one that was meant.
"""

import textwrap
from collections.abc import Iterable, Sequence

import msgspec

from crafely.db.contract.facts import Facts
from crafely.db.contract.style import WIDTH
from crafely.db.header import WORDS, read_header
from crafely.db.plans import Plan
from crafely.db.query import Statement


def uses(statement: Statement, plans: Iterable[Plan], facts: Facts) -> list[str]:
    """The indexes that «uses» should name: those it names rightly, and one way into each table that grows."""
    plans = list(plans)
    named = [index for index in statement.header.uses if all(index in plan.indexes for plan in plans)]
    growing = facts.growing() - {table for table, _ in statement.header.scans}
    for plan in plans:
        for index in plan.indexes:
            table = facts.tables[facts.indexes[index].table].name if index in facts.indexes else ""
            covered = {facts.tables[facts.indexes[name].table].name for name in named}
            if table in growing and table in plan.tables and table not in {*covered, *plan.scans}:
                named.append(index)
    return named


def rewrite(statement: Statement, uses: Sequence[str], not_null: Sequence[str]) -> Statement:
    """Writes both words into the file, unless they stand there; gives the statement as it is then."""
    header = statement.header
    if (tuple(uses), tuple(not_null)) == (header.uses, header.not_null):
        return statement
    source = statement.path.read_text(encoding="utf-8")
    _, start = read_header(statement.path, statement.name, source)
    lines = [line for line in source[:start].splitlines() if not line.startswith(("-- uses:", "-- not null:"))]
    for word, values in (("uses", uses), ("not null", not_null)):
        place = _place(lines, word)
        head = f"-- {word}: "
        lines[place:place] = [head + part.rstrip(",") for part in textwrap.wrap(", ".join(values), WIDTH - len(head))]
    source = "\n".join(lines) + "\n" + source[start:]
    statement.path.write_text(source, encoding="utf-8")
    return msgspec.structs.replace(statement, header=read_header(statement.path, statement.name, source)[0])


def _place(lines: Sequence[str], word: str) -> int:
    """Where a word's line goes: behind the last of those that come before it."""
    before = tuple(f"-- {earlier}:" for earlier in WORDS[: WORDS.index(word)])
    return 1 + max(number for number, line in enumerate(lines) if line.startswith(before))
