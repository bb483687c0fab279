"""Where a statement is planned: in a database of the caller's, or in the one that ``crafely check`` has filled."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from crafely.cli import check
from crafely.cli.target import Target, database_url, target
from crafely.config import Settings

# Where a database is wanted and none is named: the one that every command uses.
DEFAULT = ""


def add_place(parser: argparse.ArgumentParser, *, optional: bool) -> None:
    """Adds the options; with ``optional`` no database is looked at unless one of them is there."""
    either = parser.add_mutually_exclusive_group()
    words = "CRAFELY_DATABASE_URL, else the embedded one"
    if optional:
        either.add_argument(
            "--database",
            nargs="?",
            type=database_url,
            const=DEFAULT,
            metavar="URL",
            help=f"with plans and figures of this one; no URL: of {words}",
        )
    else:
        either.add_argument("--database", type=database_url, default=DEFAULT, metavar="URL", help=f"(default: {words})")
    either.add_argument(
        "--filled",
        action="store_true",
        help="in the database of `crafely check`, whose rows a planner believes; made where it is missing",
    )


@contextmanager
def place(settings: Settings, *, filled: bool) -> Iterator[Target]:
    """The database; the embedded server runs while the command does. Raises SettingsError, EmbeddedError."""
    if not filled:
        with target(settings) as found:
            yield found
        return
    with check.waiting() as progress, check.scratch(settings, progress) as url:
        progress.stop()
        yield Target(url, embedded=True)
