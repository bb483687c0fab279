"""All commands, and what a person reads when one of them cannot do its work."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import psycopg

from crafely import __version__
from crafely.cli import (
    audit,
    backup,
    bench,
    catalog,
    check,
    explain,
    import_prisma,
    keys,
    migrate,
    monitor,
    openapi,
    serve,
    usage,
)
from crafely.cli.listen import ListenError
from crafely.config import SettingsError
from crafely.db.backup.folder import BackupError
from crafely.db.embedded import EmbeddedError
from crafely.db.migration_files import MigrationError
from crafely.db.prisma import PrismaError
from crafely.db.query import WrongRoleError
from crafely.db.session import DatabaseUnavailableError
from crafely.keyring import KeyringError

# What a person can mend: one line, and exit code 1. Anything else is our fault and shows its traceback.
_EXPECTED = (
    SettingsError,
    EmbeddedError,
    BackupError,
    PrismaError,
    KeyringError,
    MigrationError,
    DatabaseUnavailableError,
    WrongRoleError,
    KeyringError,
    ListenError,
    psycopg.OperationalError,  # the database went away while we asked it
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line that names the option, not the usage of all of them."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(arguments: Sequence[str] | None) -> int:
    """Runs the command that the arguments name (None: the program's own) and gives its exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except _EXPECTED as error:
        print(f"crafely: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="crafely",
        description="API keys, agents, threads, packages, subscriptions and usage on PostgreSQL.",
        epilog="Without CRAFELY_DATABASE_URL every command uses the embedded PostgreSQL in .crafely/.",
    )
    parser.add_argument("--version", action="version", version=f"crafely {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (
        serve,
        keys,
        usage,
        audit,
        migrate,
        check,
        explain,
        catalog,
        monitor,
        backup,
        import_prisma,
        openapi,
        bench,
    ):
        group.add(commands)
    return parser
