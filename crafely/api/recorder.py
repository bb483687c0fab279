"""Storing usage records for many callers at once."""

from msgspec import Raw

from crafely.db.coalesce import Coalescer
from crafely.db.query import Executor
from crafely.db.session import Database
from crafely.store import usage
from crafely.store.usage import Recorded

# Connections, and the most records of one statement.
CHANNELS = 2
BATCH = 256


async def store(db: Executor, *, records: Raw, engine: str) -> list[Recorded]:
    """Records usage by the form of the statement that the engine (CRAFELY_ENGINE) takes: both do the same.

    Takes and gives what ``usage.record`` does.
    """
    if engine == "citus":
        return await usage.record_distributed(db, records=records)
    return await usage.record(db, records=records)


def recorder(database: Database, *, queue: int, engine: str) -> Coalescer[bytes, Recorded]:
    """``sql/usage/record.sql`` for callers who bring one record each, the bytes of its JSON object.

    Takes how many may wait, and the engine. An answer comes when its record is committed. Opened and closed by its
    owner.
    """

    async def send(db: Executor, records: list[bytes]) -> list[Recorded]:
        return await store(db, records=Raw(b"[" + b",".join(records) + b"]"), engine=engine)

    channels = [database.channel("crafely_meter") for _ in range(CHANNELS)]
    # A record whose connection was lost may be stored: sent again by us it could count twice.
    return Coalescer(send, channels, batch=BATCH, queue=queue, seconds=database.pool_timeout, repeatable=False)
