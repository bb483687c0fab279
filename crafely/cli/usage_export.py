"""``crafely usage export``: a month's records as CSV, before retention drops them. Only reads the database."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from crafely.cli.files import writable
from crafely.cli.target import require_schema, target
from crafely.config import load
from crafely.db.backup import month as months
from crafely.db.backup.folder import plain_errors


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    export = actions.add_parser(
        "export",
        help="a month's records as CSV, to keep elsewhere before they are dropped",
        description=__doc__,
    )
    export.add_argument("--month", type=_month, required=True, metavar="MONTH", help="which (UTC), such as 2026-01")
    export.add_argument(
        "--output",
        type=writable,
        metavar="FILE",
        help="where to; compressed where the name ends in .gz, in place of what is there (default: standard output)",
    )
    export.add_argument("--json", action="store_true", help="the report for programs; goes with --output")
    export.set_defaults(run=_run)


def _month(argument: str) -> date:
    if re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", argument, re.ASCII) and not argument.startswith("0000"):
        return date(int(argument[:4]), int(argument[5:]), 1)
    raise argparse.ArgumentTypeError("expected a month, such as 2026-01")


def _run(arguments: argparse.Namespace) -> int:
    path: Path | None = arguments.output
    if path is None and arguments.json:
        print("crafely: --json: goes with --output, since standard output has the records", file=sys.stderr)
        return 2
    if arguments.month >= date(9999, 12, 1):
        print("crafely: --month: expected an earlier one", file=sys.stderr)
        return 2
    with target(load()) as found:
        require_schema(found)
        with _progress(f"usage of {arguments.month:%Y-%m}") as told:
            if path is None:
                with plain_errors(Path("standard output")):
                    done = months.export(found.url, arguments.month, sys.stdout.buffer, gzip=False, on_progress=told)
                    sys.stdout.buffer.flush()
            else:
                done = months.export_file(found.url, arguments.month, path, on_progress=told)
    if arguments.json:
        print(msgspec.json.encode(done).decode())
    else:
        where = f" in {done.file}" if done.file else ""
        print(
            f"{done.rows:,} records of {done.month}{where}, {done.bytes:,} bytes, SHA-256 {done.sha256}",
            file=sys.stderr,
        )
    return 0


@contextmanager
def _progress(what: str) -> Iterator[months.Progress]:
    """A bar for people, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
