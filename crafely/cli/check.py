"""``crafely check``: holds every SQL file against its signature, on a scratch database of the embedded server."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from crafely.config import load
from crafely.db import contract, embedded, migrate, query
from crafely.store import __all__ as nouns  # importing the store registers its statements


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser("check", help="hold every SQL file against its signature", description=__doc__)
    parser.add_argument("name", nargs="?", help="one statement, such as api_keys/lookup (default: all)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; exit code 1 when there are any."""
    if arguments.name is not None and arguments.name not in query.statements:
        print(
            f"crafely: {arguments.name}: no such statement; they are named like threads/list_for_agent", file=sys.stderr
        )
        return 2
    with _scratch() as url:
        migrate.up(url)
        findings = contract.check(url, arguments.name)
    if arguments.json:
        print(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            print(finding)
        count = 1 if arguments.name else len(query.statements)
        print(f"{count} statements of {len(nouns)} nouns checked, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


@contextmanager
def _scratch() -> Iterator[str]:
    """A server of its own for the check: no data of anybody is near."""
    with (
        tempfile.TemporaryDirectory(prefix="crafely-check-", ignore_cleanup_errors=True) as folder,
        embedded.running(Path(folder), postgres_bin=load().postgres_bin, options={"fsync": "off"}) as server,
    ):
        yield server.url
