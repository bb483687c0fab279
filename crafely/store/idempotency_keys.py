"""Answers that are kept for who asks again: ``sql/idempotency_keys/``."""

from datetime import datetime

from crafely.db.query import Executor, Row, sql


class IdempotencyKey(Row, frozen=True):
    """What was answered to a request, which the fingerprint tells. ``body`` is sealed where there are keys for it."""

    fingerprint: str
    status: int
    location: str | None
    etag: str | None
    body: str


@sql
async def lock(db: Executor, *, user_id: str, key: str) -> bool:
    """Takes a user's key for as long as the transaction lasts. False, at once, where another transaction has it."""


@sql
async def get(db: Executor, *, user_id: str, key: str) -> IdempotencyKey | None:
    """What was answered to a user's key."""


@sql
async def create(
    db: Executor,
    *,
    user_id: str,
    key: str,
    fingerprint: str,
    status: int,
    location: str | None,
    etag: str | None,
    body: str,
) -> int:
    """Keeps an answer. Gives 1."""


@sql
async def forget(db: Executor, *, older_than: datetime, take: int) -> int:
    """Forgets the oldest answers from before a time, so many at a time (more, if they are of one moment).

    Gives how many.
    """
