"""What ``crafely migrate status``, ``verify`` and ``lint`` print."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crafely.cli.spare import spare
from crafely.cli.tables import show
from crafely.cli.target import Target
from crafely.db import migrate, migration_lint, migration_verify, schema_file, snapshot, squawk
from crafely.db.drift import Drift, drift, why_not
from crafely.db.migration_files import MigrationError

_STYLES = {"applied": "green", "pending": "yellow", "edited": "red", "missing": "red"}


class Status(msgspec.Struct, frozen=True):
    """What ``status --json`` prints; ``drift`` is null where it was not asked for."""

    migrations: list[migrate.Migration]
    drift: Drift | None


def status(found: Target, arguments: argparse.Namespace) -> int:
    """Prints the history, and every object that it does not account for; exit code 0 when all is as it should be."""
    history = migrate.status(found.url)
    compared = None if arguments.history else _drift(found, history)
    if arguments.json:
        print(msgspec.json.encode(Status(history, compared)).decode())
    else:
        _show_history(history)
        if compared:
            _show_drift(compared)
    # A script can ask: 0 means that the database is what the files say.
    well = all(one.state == "applied" for one in history) and not (compared and compared.differences)
    return 0 if well else 1


def _drift(found: Target, history: list[migrate.Migration]) -> Drift:
    if reason := why_not(history):
        return Drift(not_compared=reason)
    with _busy("making a database to compare with"), spare() as server:
        return drift(found.url, server.url)


def _show_history(history: list[migrate.Migration]) -> None:
    table = Table("migration", "state", "applied at (UTC)", "checksum")
    for one in history:
        applied = one.applied_at.strftime("%Y-%m-%d %H:%M:%S") if one.applied_at else ""
        table.add_row(one.id, f"[{_STYLES[one.state]}]{one.state}[/]", applied, one.checksum[:12])
    show(table)


def _show_drift(compared: Drift) -> None:
    if compared.not_compared:
        print(f"objects: not compared: {compared.not_compared}")
    elif not compared.differences:
        print("objects: all are as the migrations make them")
    else:
        print(f"objects: {len(compared.differences)} differ from what the migrations make:")
        for difference in compared.differences:
            print(f"  {difference}")
        if compared.note:
            print(f"  note: {compared.note}")


def verify(arguments: argparse.Namespace) -> int:
    """Prints what each migration did, and what does not hold; exit code 1 when anything does not."""
    if arguments.id not in (None, *migrate.expected()):
        raise MigrationError(f"{arguments.id}: the folder has no such migration")
    with _progress() as progress, spare() as server:
        bar = progress.add_task("starting", total=None)

        def tell(name: str, done: int, total: int) -> None:
            progress.update(bar, description=name, completed=done, total=total)

        report = migration_verify.verify(server.url, only=arguments.id, on_progress=tell)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
        return 1 if report.findings else 0
    table = Table(
        "migration", "up ms", "down ms", "locks on tables that were there", "others waited ms", box=box.SIMPLE
    )
    for one in report.migrations:
        locks = [f"{held.table}: {_mode(held.mode)} {held.ms:.0f} ms" for held in one.locks]
        locks += [f"[red]{escape(name)}: written anew[/]" for name in one.rewrites]
        waited = f"read {one.read_wait_ms:.0f}, write {one.write_wait_ms:.0f}" if one.statements else ""
        table.add_row(one.id, f"{one.up_ms:.0f}", f"{one.down_ms:.0f}", "\n".join(locks), waited)
    show(table)
    for finding in report.findings:
        print(finding)
    print(f"{len(report.migrations)} migrations there, back and there again, {len(report.findings)} findings")
    return 1 if report.findings else 0


def lint(arguments: argparse.Namespace) -> int:
    """Prints what is wrong with the migrations; exit code 1 when anything is."""
    with _busy("making a database of the migrations"), spare() as server:
        findings = migration_lint.lint(server.url)
    if not squawk.find():
        say("squawk is not installed (pip install squawk-cli): only our own rules were held")
    if arguments.json:
        print(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            print(finding)
        say(f"migrations: {len(findings)} findings")
    return 1 if findings else 0


def schema(_: argparse.Namespace) -> int:
    """Prints sql/schema.sql, as `make schema` writes it."""
    with _busy("making a database of the migrations"), spare() as server:
        migrate.up(server.url)
        with migrate.reading(server.url) as connection:
            print(schema_file.render(snapshot.take(connection)), end="")
    return 0


def say(line: str) -> None:
    """For people, beside what a program reads."""
    print(line, file=sys.stderr)


def _mode(mode: str) -> str:
    """ShareRowExclusiveLock: share row exclusive."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in mode.removesuffix("Lock")).strip()


@contextmanager
def _progress() -> Iterator[Progress]:
    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


@contextmanager
def _busy(what: str) -> Iterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
