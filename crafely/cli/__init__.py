"""The command line: one module for each group of commands, each with ``add(commands)``."""

import argparse
import sys
from collections.abc import Sequence

from crafely import __version__
from crafely.cli import check, keys, migrate, openapi, serve
from crafely.cli.listen import ListenError
from crafely.config import SettingsError
from crafely.db.embedded import EmbeddedError
from crafely.db.header import SqlFileError
from crafely.db.migration_files import MigrationError
from crafely.db.session import DatabaseUnavailableError, WrongRoleError

# What a person can mend: one line, and exit code 1. Anything else is our fault and shows its traceback.
_EXPECTED = (
    SettingsError,
    EmbeddedError,
    MigrationError,
    DatabaseUnavailableError,
    WrongRoleError,
    SqlFileError,
    ListenError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Gives the exit code: 0 done, 1 refused or found something, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="crafely",
        description="API keys, agents, threads, packages, subscriptions and usage on PostgreSQL.",
        epilog="Without CRAFELY_DATABASE_URL every command uses the embedded PostgreSQL in .crafely/.",
    )
    parser.add_argument("--version", action="version", version=f"crafely {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (serve, keys, migrate, check, openapi):
        group.add(commands)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except _EXPECTED as error:
        print(f"crafely: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain again when it flushes at exit.
        sys.stderr.close()
        return 0
