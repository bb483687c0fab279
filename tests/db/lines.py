"""Coalescers to harm, and statements that a test holds up."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
import psycopg

from crafely.db.channel import Channel
from crafely.db.coalesce import Coalescer
from crafely.db.query import Executor, Statement
from tests.db.harm import running
from tests.db.statements import opened, until
from tests.db.statements import statement as unnamed

ROLE, APPLICATION = "crafely_app", "crafely app"
# Both wait while somebody holds the lock.
HELD = "with held as materialized (select pg_advisory_xact_lock_shared(7))"
ECHO = (
    "with held as materialized (select pg_advisory_xact_lock_shared(7))"
    " select '<' || item || '>' from held, unnest($1::text[]) with ordinality t (item, n) order by n"
)
STORE = (
    "with held as materialized (select pg_advisory_xact_lock_shared(7)) insert into stored"
    " select item from held, unnest($1::text[]) with ordinality t (item, n) order by n returning item"
)


def statement(text: str) -> Statement:
    """A channel prepares by name: each text has its own."""
    return msgspec.structs.replace(unnamed(text, ROLE), name=text, make_row=lambda values: values[0])


class Sender:
    """Sends batches, and notes them: what was in each, and how many were in flight at once, in all and on one."""

    def __init__(self, text: str) -> None:
        self._statement = statement(text)
        self.batches: list[list[str]] = []
        self._in_flight: list[Executor] = []
        self.most_at_once = 0

    async def __call__(self, db: Executor, items: list[str]) -> list[str]:
        self.batches.append(items)
        assert db not in self._in_flight
        self._in_flight.append(db)
        self.most_at_once = max(self.most_at_once, len(self._in_flight))
        try:
            return (await db.execute(self._statement, [items])).rows
        finally:
            self._in_flight.remove(db)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


class Line:
    """A coalescer, its sender and its channels."""

    def __init__(self, sender: Sender, channels: list[Channel], *, batch: int, queue: int, seconds: float) -> None:
        self.sender = sender
        self.channels = channels
        reads = "insert" not in sender._statement.name
        self.coalescer = Coalescer[str, str](
            sender, channels, batch=batch, queue=queue, seconds=seconds, repeatable=reads
        )
        self.ask = self.coalescer.ask

    def ask_all(self, *items: object) -> "asyncio.Future[list[str | BaseException]]":
        return asyncio.gather(*(self.ask(str(item)) for item in items), return_exceptions=True)


def echoes(*items: object) -> list[str]:
    return [f"<{item}>" for item in items]


@asynccontextmanager
async def line(
    url: str,
    text: str = ECHO,
    *,
    channels: int = 1,
    batch: int = 128,
    queue: int = 10_000,
    limit: float = 20,
    seconds: float = 60,
) -> AsyncIterator[Line]:
    # A caller who is never answered fails his test.
    async with asyncio.timeout(60), opened(url, roles=[], statement_timeout=limit) as database:
        made = Line(
            Sender(text),
            [database.channel(ROLE) for _ in range(channels)],
            batch=batch,
            queue=queue,
            seconds=seconds,
        )
        await made.coalescer.open()
        try:
            yield made
        finally:
            async with asyncio.timeout(60):
                await made.coalescer.close()


@contextmanager
def hold(superuser: psycopg.Connection) -> Iterator[None]:
    """Holds up every statement."""
    superuser.execute("select pg_advisory_lock(7)")
    try:
        yield
    finally:
        superuser.execute("select pg_advisory_unlock(7)")


async def in_flight(superuser: psycopg.Connection, count: int = 1) -> None:
    """Waits until so many statements wait."""
    await until(lambda: running(superuser, HELD) == count)


class Stored:
    """A table of what was stored."""

    def __init__(self, superuser: psycopg.Connection) -> None:
        self._superuser = superuser
        superuser.execute("create table stored (item text check (item <> 'refused'))")
        superuser.execute("grant select, insert on stored to crafely_app")

    def __call__(self) -> list[str]:
        return [item for (item,) in self._superuser.execute("select item from stored order by item")]
