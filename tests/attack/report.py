"""What was tried and what was answered, over all attacks; ``make attack`` prints it."""

import os
from collections import Counter, defaultdict

from rich import box
from rich.table import Table

from crafely.cli.tables import show

PRINT = bool(os.environ.get("ATTACK"))

_tries: defaultdict[str, Counter[str]] = defaultdict(Counter)
_tables: list[Table] = []


def tried(attack: str, answer: object) -> None:
    """Counts one try of an attack by its answer: a status, or a word."""
    _tries[attack][str(answer)] += 1


def also(table: Table) -> None:
    """Prints a table after that of the tries."""
    _tables.append(table)


def print_all() -> None:
    table = Table("attack", "tries", "answers", box=box.SIMPLE_HEAD)
    for attack, answers in _tries.items():
        shown = ", ".join(f"{answer}: {count:,}" for answer, count in sorted(answers.items()))
        table.add_row(attack, f"{answers.total():,}", shown)
    table.add_section()
    table.add_row("", f"{sum(answers.total() for answers in _tries.values()):,}", "")
    for one in [table, *_tables]:
        show(one)
