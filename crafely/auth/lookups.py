"""Looking keys up, and the limits of packages, for many callers at once: the one place here that knows the store."""

from crafely.db.coalesce import Coalescer
from crafely.db.query import Executor
from crafely.db.session import Database
from crafely.store import api_keys, user_subscriptions
from crafely.store.api_keys import KeyRecord

# Connections, and the most keys of one statement.
CHANNELS = 3
BATCH = 64


def lookups(database: Database, *, queue: int) -> Coalescer[str, KeyRecord | None]:
    """``sql/api_keys/lookup.sql`` for callers who ask for one key each: None for an unknown one.

    Takes how many may wait. Opened and closed by its owner.
    """

    async def send(db: Executor, key_ids: list[str]) -> list[KeyRecord | None]:
        found = {row.key_id: row for row in await api_keys.lookup(db, key_ids=list(dict.fromkeys(key_ids)))}
        return [found.get(key_id) for key_id in key_ids]

    channels = [database.channel("crafely_auth") for _ in range(CHANNELS)]
    return Coalescer(send, channels, batch=BATCH, queue=queue, seconds=database.pool_timeout, repeatable=True)


def package_limits(database: Database, *, queue: int) -> Coalescer[str, int | None]:
    """``sql/user_subscriptions/rate_limits.sql`` for callers who ask for one user each: None where no package says.

    Takes how many may wait. Opened and closed by its owner.
    """

    async def send(db: Executor, user_ids: list[str]) -> list[int | None]:
        rows = await user_subscriptions.rate_limits(db, user_ids=list(dict.fromkeys(user_ids)))
        found = {row.user_id: row.rate_limit for row in rows}
        return [found.get(user_id) for user_id in user_ids]

    return Coalescer(
        send,
        [database.channel("crafely_auth")],
        batch=BATCH,
        queue=queue,
        seconds=database.pool_timeout,
        repeatable=True,
    )
