"""``crafely import prisma``: copies a database of the Node application, as Prisma made it, into an empty one."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from crafely.cli.encryption_keys import sealed, with_keys
from crafely.cli.files import writable
from crafely.cli.tables import show
from crafely.cli.target import Target, connected, database_url, require_schema, target
from crafely.config import Settings, load
from crafely.db import backup, prisma
from crafely.db.prisma.load import Line, Report
from crafely.db.prisma.load import load as fill
from crafely.keyring import Keyring


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser("import", help="move in from another database", description=__doc__)
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", required=True)

    command = kinds.add_parser(
        "prisma",
        help="from a database of the Node application; exit code 1 where rows cannot be taken",
        description=f"{__doc__} Stop the application first. An import that was ended, or that found rows it cannot "
        "take, is gone on with by the same command.",
    )
    command.add_argument(
        "--from",
        dest="source",
        type=database_url,
        required=True,
        metavar="URL",
        help="the source: the application's DATABASE_URL without its password, and without ?schema=… and what else is "
        "Prisma's own",
    )
    command.add_argument("--schema", default="public", metavar="NAME", help="its schema (default: public)")
    command.add_argument("--dry-run", action="store_true", help="do it all, say what is found, and take it back")
    command.add_argument(
        "--leave-behind",
        action="store_true",
        help="complete the import without the rows that cannot be taken, and without columns that are unknown here",
    )
    command.add_argument(
        "--report",
        type=writable,
        metavar="FILE",
        help="a JSON line for each row that cannot be taken, or that is taken and of no use as it is",
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Imports; exit code 1 unless it is complete."""
    settings = load()
    with target(settings) as found, ExitStack() as stack:
        require_schema(found)
        ring = with_keys(settings, found).encryption_keys or Keyring({}, writes=None)
        source = stack.enter_context(prisma.source(arguments.source, arguments.schema))
        if not arguments.dry_run:
            asyncio.run(_register(settings, found, ring))
        write = stack.enter_context(_lines(arguments.report))
        tell = stack.enter_context(_progress())
        report = fill(
            found.url,
            source,
            ring=ring,
            sealed={kind.table: kind.columns for kind in sealed()},
            leave_behind=arguments.leave_behind,
            dry_run=arguments.dry_run,
            on_line=write,
            on_progress=tell,
        )
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        _show(report)
    return 0 if report.is_complete else 1


async def _register(settings: Settings, found: Target, ring: Keyring) -> None:
    """Notes in the database which key its texts are sealed with, before the first one is. Raises KeyringError."""
    from crafely.api.encryption_keys import check  # noqa: PLC0415 - HTTP comes along, which other commands do without

    role = "crafely_admin"
    async with connected(settings, found.url, role) as database:
        await check(database.session(role), ring)


@contextmanager
def _lines(path: Path | None) -> Iterator[Callable[[Line], object]]:
    """What writes the report; without a file, nowhere."""
    if path is None:
        yield lambda _: None
        return
    with path.open("wb") as file:
        yield lambda line: file.write(msgspec.json.encode(line) + b"\n")


def _show(report: Report) -> None:
    tables = Table("table", "source", "read", "taken", "refused", "checksum", box=box.SIMPLE_HEAD)
    for one in report.tables:
        counts = (f"{number:,}" for number in (one.read, one.taken, one.refused))
        tables.add_row(one.table, one.source, *counts, one.checksum or "–")
    show(tables)
    if report.refused:
        refused = Table("source", "column", "cannot be taken", "rows", box=box.SIMPLE_HEAD)
        for rule in report.refused:
            refused.add_row(rule.table, rule.column, escape(rule.rule), f"{rule.rows:,}")
        show(refused)
    said = []
    if report.left_columns:
        said.append(f"left behind, because nothing here is like them: {', '.join(report.left_columns)}")
    if report.unusable:
        said.append(f"{report.unusable:,} keys were taken that nobody can present here: their holders rotate them")
    took = f"{sum(one.taken for one in report.tables):,} rows in {report.seconds:.1f} s"
    if report.is_dry_run:
        said.append(f"{took}, and taken back: nothing was changed")
    elif report.is_complete:
        said.append(f"complete: {took}, the same on both sides")
    if not report.is_complete:
        said.append("rows cannot be taken: mend them in the source and run this again, or say --leave-behind")
    print("\n".join(said), file=sys.stderr)


class _Speed(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        """Gives the text."""
        return Text(f"{task.speed or 0:,.0f} rows/s")


@contextmanager
def _progress() -> Iterator[backup.Progress]:
    """A bar on the terminal, which goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), _Speed(), TimeRemainingColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)
