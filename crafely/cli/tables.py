"""Tables for people."""

import sys

from rich.console import Console
from rich.table import Table

# Wide enough that no row is broken where nobody's terminal sets a limit.
PIPE_WIDTH = 240


def show(table: Table) -> None:
    """Prints a table as wide as the terminal. What does not fit goes on in the next line: nothing is cut short."""
    for column in table.columns:
        column.overflow = "fold"
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
