"""``crafely backup``: every row of one moment in a folder, tried out, and made a database of again."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from crafely import keyring
from crafely.cli import audit
from crafely.cli.encryption_keys import FILE, sealed, with_keys
from crafely.cli.spare import spare
from crafely.cli.tables import show
from crafely.cli.target import Target, connected, database_url, require_schema, target
from crafely.config import Settings, load
from crafely.db import backup, drift, migrate, scratch
from crafely.db.backup import folder
from crafely.db.backup.folder import Backup
from crafely.db.backup.restore import restore
from crafely.db.query import statements
from crafely.db.session import Session
from crafely.keyring import Keyring, KeyringError, UnreadableError

# In another cluster transactions are counted anew: the chain of the audit trail has to say so before anybody writes.
_FINISH = (statements["audit_log/seal"],)
# Rows that are opened at a time.
BATCH = 100
_STYLES = {"complete": "green", "unfinished": "yellow", "damaged": "red"}


class Listed(msgspec.Struct, frozen=True):
    """A line of ``list --json``. Sizes are in bytes, times in UTC; null where the manifest cannot be read."""

    name: str
    path: str
    state: folder.State
    problem: str | None
    started_at: datetime
    seconds: float | None
    bytes: int | None
    rows: int | None
    release: str | None
    server: str | None
    database: str | None
    key: str | None
    audit_head: str | None


class Verified(msgspec.Struct, frozen=True):
    """What ``verify --json`` prints: ``seconds`` is what restoring took, and without findings the backup is good."""

    name: str
    rows: int
    bytes: int
    seconds: float
    findings: list[str]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser("backup", help="back up, verify, restore", description=__doc__)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--dir", type=Path, metavar="FOLDER", help="where backups are (CRAFELY_BACKUP_DIR)")
    where.add_argument("--json", action="store_true", help="for programs")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("name", nargs="?", metavar="BACKUP", help="its name or its folder (default: the newest)")

    create = actions.add_parser("create", parents=[where], help="make one, while others go on writing")
    create.add_argument(
        "--due",
        action="store_true",
        help="only if the newest is older than CRAFELY_BACKUP_HOURS; then remove the oldest beyond CRAFELY_BACKUP_KEEP",
    )
    create.set_defaults(run=_create)

    listed = actions.add_parser("list", parents=[where], help="what is there; exit code 1 where one is damaged")
    listed.set_defaults(run=_list)

    verify = actions.add_parser(
        "verify",
        parents=[where, named],
        help="restore one on a server made for it, and compare; exit code 1 if not good",
    )
    verify.set_defaults(run=_verify)

    put_back = actions.add_parser("restore", parents=[where, named], help="make a database of one: it must be empty")
    put_back.add_argument(
        "--into",
        type=database_url,
        metavar="URL",
        help="which database (default: CRAFELY_DATABASE_URL or the embedded one)",
    )
    put_back.set_defaults(run=_restore)


def _place(settings: Settings, arguments: argparse.Namespace) -> Path | None:
    return arguments.dir or settings.backup_dir


def _writing(settings: Settings, found: Target) -> Keyring:
    """The keys that a backup of this database is sealed with. Raises KeyringError, MigrationError."""
    if (ring := settings.encryption_keys or (_own(settings) if found.embedded else None)) is not None:
        return ring
    if found.embedded:
        require_schema(found)
    return with_keys(settings, found).encryption_keys or Keyring({}, writes=None)


def _reading(settings: Settings) -> Keyring:
    """The keys that there are to open a backup with, perhaps none. Raises KeyringError."""
    return settings.encryption_keys or _own(settings) or Keyring({}, writes=None)


def _own(settings: Settings) -> Keyring | None:
    return keyring.read(settings.data_dir / FILE)


def _create(arguments: argparse.Namespace) -> int:
    settings = load()
    place = _place(settings, arguments)
    if place is None:
        print("crafely: --dir: expected the folder for backups, here or in CRAFELY_BACKUP_DIR", file=sys.stderr)
        return 2
    try:
        with folder.turn(place):
            if arguments.due and not folder.is_due(place, settings.backup_hours):
                print(f"nothing to do: the newest is younger than {settings.backup_hours:g} h", file=sys.stderr)
                return 0
            with target(settings) as found, _progress() as tell:
                ring = _writing(settings, found)
                made = backup.create(found.url, place, ring=ring, head=statements["audit_log/head"], on_progress=tell)
            removed = folder.retain(place, settings.backup_keep) if arguments.due else []
    except folder.BusyError as busy:
        if arguments.due:
            print(f"nothing to do: {busy}", file=sys.stderr)
            return 0
        raise
    if arguments.json:
        print(msgspec.json.encode(_listed(made)).decode())
    else:
        print(made.path)
    for name in removed:
        print(f"removed {name}", file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    place = _place(load(), arguments)
    if place is None:
        print("crafely: --dir: expected the folder of backups, here or in CRAFELY_BACKUP_DIR", file=sys.stderr)
        return 2
    found = folder.every(place)
    if arguments.json:
        print(msgspec.json.encode([_listed(one) for one in found]).decode())
    else:
        show(_table(found))
    return 1 if any(one.state == "damaged" for one in found) else 0


def _listed(one: Backup) -> Listed:
    manifest = one.manifest
    taken = (manifest.finished_at - manifest.started_at).total_seconds() if manifest else None
    return Listed(
        name=one.name,
        path=str(one.path.absolute()),
        state=one.state,
        problem=one.problem,
        started_at=one.started_at,
        seconds=taken,
        bytes=manifest.bytes if manifest else None,
        rows=manifest.rows if manifest else None,
        release=manifest.release if manifest else None,
        server=manifest.server if manifest else None,
        database=manifest.database if manifest else None,
        key=manifest.key if manifest else None,
        audit_head=manifest.audit_head if manifest else None,
    )


def _table(found: list[Backup]) -> Table:
    table = Table("backup", "of (UTC)", "age", "rows", "size", "key", "state", box=box.SIMPLE_HEAD)
    for one in found:
        age = datetime.now(UTC) - one.started_at
        manifest = one.manifest
        table.add_row(
            one.name,
            f"{one.started_at:%Y-%m-%d %H:%M}",
            _age(age),
            f"{manifest.rows:,}" if manifest else "–",
            f"{manifest.bytes / 1e6:,.1f} MB" if manifest else "–",
            escape(manifest.key or "in clear") if manifest else "–",
            f"[{_STYLES[one.state]}]{one.state}[/]" + (f": {escape(one.problem)}" if one.problem else ""),
        )
    return table


def _age(age: timedelta) -> str:
    hours = age / timedelta(hours=1)
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 48 else f"{age.days} days"


def _verify(arguments: argparse.Namespace) -> int:
    settings = load()
    path = folder.find(_place(settings, arguments), arguments.name)
    ring = _reading(settings)
    # Before a server is started for it.
    folder.read(path, ring)
    with spare() as server, scratch.database(server.url) as made:
        with _progress() as tell:
            restored = restore(made, path, ring=ring, finish=_FINISH, on_progress=tell)
            manifest = restored.manifest
            tell("comparing with the migrations", manifest.rows, manifest.rows)
            findings = [str(difference) for difference in drift.drift(made, server.url).differences]
            # As this release will read it.
            migrate.up(made)
            tell("opening sealed texts", manifest.rows, manifest.rows)
        findings += asyncio.run(_read_through(settings, made, ring, manifest.audit_head))
    verified = Verified(path.name, manifest.rows, manifest.bytes, round(restored.seconds, 3), findings)
    if arguments.json:
        print(msgspec.json.encode(verified).decode())
    else:
        print(f"{path.name}: {manifest.rows:,} rows, restored and compared in {restored.seconds:.1f} s")
        for finding in findings:
            print(finding)
    return 1 if findings else 0


async def _read_through(settings: Settings, url: str, ring: Keyring, head: str | None) -> list[str]:
    """What is wrong in a restored database, a line each: texts that no key opens, and the audit trail's chain."""
    from crafely.api.encryption_keys import check  # noqa: PLC0415 - HTTP comes along, which other commands do without

    roles = ("crafely_admin", "crafely_encryption", "crafely_backup")
    findings = []
    async with connected(settings, url, *roles, statement_timeout=3600) as database:
        try:
            await check(database.session("crafely_admin"), ring)
        except KeyringError as error:
            findings.append(str(error))
        findings += [line async for line in _unreadable(database.session("crafely_encryption"), ring)]
        report = await audit.verify(database.session("crafely_backup"), head)
        findings += [f"audit trail: {finding.finding}" for finding in report.findings]
    return findings


async def _unreadable(session: Session, ring: Keyring) -> AsyncIterator[str]:
    for kind in sealed():
        async for rows in kind.pages(session, key_id="", take=BATCH):
            for row in rows:
                try:
                    ring.open_columns(kind.table, row, kind.columns)
                except UnreadableError as error:
                    yield str(error)


def _restore(arguments: argparse.Namespace) -> int:
    settings = load()
    path = folder.find(_place(settings, arguments), arguments.name)
    ring = _reading(settings)
    with _into(settings, arguments.into) as url, _progress() as tell:
        restored = restore(url, path, ring=ring, finish=_FINISH, on_progress=tell)
    manifest = restored.manifest
    if arguments.json:
        print(
            msgspec.json.encode(
                {"name": path.name, "rows": manifest.rows, "seconds": round(restored.seconds, 3)}
            ).decode()
        )
    else:
        print(f"{path.name}: {manifest.rows:,} rows restored and compared in {restored.seconds:.1f} s")
    return 0


@contextmanager
def _into(settings: Settings, url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with target(settings) as found:
        yield found.url


@contextmanager
def _progress() -> Iterator[backup.Progress]:
    """A bar on the terminal, which goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total or None)
