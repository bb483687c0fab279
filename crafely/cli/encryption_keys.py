"""Keys that texts are sealed with: where a command finds them, and ``crafely keys reencrypt``."""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import psycopg
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from crafely import keyring
from crafely.cli.tables import show
from crafely.cli.target import Target, connected, require_schema, target
from crafely.config import Settings, load
from crafely.db.session import Identity, Session
from crafely.keyring import OFF, Keyring, KeyringError, UnreadableError, sealed_columns
from crafely.store import agents, encryption_keys, threads
from crafely.store.agents import SealedAgent
from crafely.store.encryption_keys import EncryptionKey, SealedTexts
from crafely.store.threads import SealedThread

# The embedded database's own key: the file in data_dir, and the id of what is made by itself.
FILE = "encryption.key"
LOCAL = "local"
# Rows that are read and written at a time: at their longest, agents have texts of 800 kB, and each is there twice.
BATCH = 32
# How often all rows are gone through; what others write meanwhile with another key is left for the next round.
ROUNDS = 5

ROLE = "crafely_encryption"
# Sealed, too, but so short-lived that it is left to housekeeping.
KEPT = "idempotency_keys"


class Sealed(msgspec.Struct, frozen=True):
    """A table with texts that are sealed: its name, those columns, and its two statements for all users' rows."""

    table: str
    columns: tuple[str, ...]
    list_to_reencrypt: Callable[..., Awaitable[Sequence[Any]]]
    reencrypt: Callable[..., Awaitable[int]]

    async def pages(self, session: Session, *, key_id: str, take: int) -> AsyncIterator[Sequence[Any]]:
        """The rows with a text that is not sealed with this key, so many at a time; no key's id gives every row."""
        after = ""
        while rows := await self.list_to_reencrypt(session, key_id=key_id, after=after, take=take):
            after = rows[-1].id
            yield rows


def sealed() -> tuple[Sealed, ...]:
    """The tables."""
    return (
        Sealed("agents", sealed_columns(SealedAgent), agents.list_to_reencrypt, agents.reencrypt),
        Sealed("threads", sealed_columns(SealedThread), threads.list_to_reencrypt, threads.reencrypt),
    )


def with_keys(settings: Settings, found: Target) -> Settings:
    """The settings with keys: their own, else those of the embedded database, which are made when it has none yet.

    Raises KeyringError with one line: another database needs keys that are said, or those of the embedded one are lost.
    """
    if settings.encryption_keys is not None:
        return settings
    if not found.embedded:
        raise KeyringError(
            "CRAFELY_ENCRYPTION_KEYS: not set, and with CRAFELY_DATABASE_URL it must be: say id:key, made with: "
            'echo "k1:$(openssl rand -base64 32)"; or off, to store in clear'
        )
    path = settings.data_dir / FILE
    ring = keyring.read(path)
    if ring is None:
        # Asked first: a new key in the place of a lost one would only hide that.
        if used := [key.id for key in _known(settings, found) if key.id != OFF and key.retired_at is None]:
            raise KeyringError(
                f"{path} is gone, and texts of the database are sealed with its key {', '.join(used)}: "
                "put it back from a copy, or say the key in CRAFELY_ENCRYPTION_KEYS"
            )
        ring = keyring.make(path, LOCAL)
    return msgspec.structs.replace(settings, encryption_keys=ring)


def _known(settings: Settings, found: Target) -> list[EncryptionKey]:
    """The keys that a database knows; none where it has no schema yet."""

    async def ask() -> list[EncryptionKey]:
        async with connected(settings, found.url, "crafely_admin") as database:
            return await encryption_keys.list_all(database.session("crafely_admin"))

    try:
        return asyncio.run(ask())
    except psycopg.errors.UndefinedTable:
        return []


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to ``crafely keys``."""
    parser = actions.add_parser(
        "reencrypt",
        help="store every text with the first of CRAFELY_ENCRYPTION_KEYS (off: in clear)",
        description="Seals agents' and threads' texts anew with the first key, while the API serves; may be cut short "
        "and run again. Give that key to every server before. What the audit trail and backups hold stays as it is.",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_run)


class Report(msgspec.Struct, rename="camel"):
    """What was done, and what there is now."""

    # The key that writes; off: in clear.
    key: str
    # Rows that were stored anew.
    reencrypted: int
    # Texts that no key opens, by table, column and row.
    unreadable: list[str]
    # Keys that no text of these tables is sealed with any more, and that were in use before.
    retired: list[str]
    texts: list[SealedTexts]

    @property
    def left(self) -> int:
        """Texts that are not sealed with the key."""
        return sum(count.texts for count in self.texts if count.key_id != self.key)


def _run(arguments: argparse.Namespace) -> int:
    settings = load()
    with target(settings) as found:
        require_schema(found)
        settings = with_keys(settings, found)
        report = asyncio.run(_reencrypt(settings, found.url))
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        table = Table("table", "column", "key", "texts", box=box.SIMPLE_HEAD)
        for count in report.texts:
            table.add_row(count.table_name, count.column_name, count.key_id, str(count.texts))
        show(table)
        print(f"{report.reencrypted} rows stored anew; {report.left} texts left", file=sys.stderr)
        if any(count.table_name == KEPT and count.key_id != report.key for count in report.texts):
            print(
                "answers that are kept for idempotency keys are forgotten within a day: run it again then",
                file=sys.stderr,
            )
        for id_ in report.retired:
            print(f"no row needs {id_} any more; the audit trail and earlier backups may", file=sys.stderr)
    for place in report.unreadable[:20]:
        print(f"crafely: {place}", file=sys.stderr)
    return 1 if report.left or report.unreadable else 0


async def _reencrypt(settings: Settings, url: str) -> Report:
    """Goes through all rows until none is left, then retires the keys that nothing needs any more."""
    from crafely.api.encryption_keys import check  # noqa: PLC0415 - HTTP comes along, which other commands do without

    ring = settings.encryption_keys or Keyring({}, writes=None)
    key_id = ring.writes or OFF
    try:
        # All texts are counted in one statement, and a DBA waits for it.
        async with connected(settings, url, ROLE, statement_timeout=3600) as database:
            session = database.session(ROLE, Identity("", request_id="crafely keys reencrypt"))
            await check(session, ring)
            # What is in clear is what is to be sealed.
            ring.reads_clear = True
            done, unreadable = 0, set[str]()
            for _ in range(ROUNDS):
                changed, failed = await _round(session, ring, key_id)
                done, unreadable = done + changed, failed
                if not changed:
                    break
            texts = await encryption_keys.count_texts(session)
            used = {count.key_id for count in texts}
            known = await encryption_keys.list_all(session)
            retired = [
                key.id
                for key in known
                if key.id not in {*used, key_id} and await encryption_keys.retire(session, id=key.id)
            ]
    except psycopg.errors.InsufficientPrivilege as error:
        raise KeyringError(f"this login may not reencrypt: {error.diag.message_primary}") from None
    return Report(key=key_id, reencrypted=done, unreadable=sorted(unreadable), retired=retired, texts=texts)


async def _round(session: Session, ring: Keyring, key_id: str) -> tuple[int, set[str]]:
    """Every row once. Gives how many were stored anew, and what no key opens."""
    counts = Counter[str]()
    for count in await encryption_keys.count_texts(session):
        if count.key_id != key_id:
            counts[count.table_name] += count.texts
    done, unreadable = 0, set[str]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not counts or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        for kind in sealed():
            table, names = kind.table, kind.columns
            task = progress.add_task(table, total=counts[table])
            async for rows in kind.pages(session, key_id=key_id, take=BATCH):
                anew = []
                for row in rows:
                    progress.advance(task, sum(getattr(row, name) is not None for name in names))
                    try:
                        opened = ring.open_columns(table, row, names)
                    except UnreadableError as error:
                        unreadable.add(str(error))
                        continue
                    stored = {name: getattr(row, name) for name in names}
                    new = ring.seal_columns(table, row.id, {name: getattr(opened, name) for name in names})
                    anew.append({"id": row.id, **{f"old_{name}": stored[name] for name in names}, **new})
                if anew:
                    done += await kind.reencrypt(session, records=msgspec.Raw(msgspec.json.encode(anew)))
    return done, unreadable
