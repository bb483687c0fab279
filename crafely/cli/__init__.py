"""The command line: one module for each group of commands, each with ``add(commands)``."""

import sys
from collections.abc import Sequence

from crafely import signals
from crafely.db.header import SqlFileError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Gives the exit code: 0 done, 1 refused or found something, 2 wrong usage, 130 interrupted.

    SIGTERM and the end of the terminal do what Ctrl-C does: whatever the command started is stopped first.
    """
    try:
        signals.interrupt()
        # Only now: importing takes half a second, in which Ctrl-C must be as quiet as later.
        from crafely.cli.commands import run  # noqa: PLC0415 - see above

        return run(arguments)
    except SqlFileError as error:
        # The import above holds every statement's file against its signature, whatever the command.
        print(f"crafely: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain again when it flushes at exit.
        sys.stderr.close()
        return 0
