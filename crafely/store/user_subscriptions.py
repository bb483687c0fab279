"""Subscriptions of users to packages: ``sql/user_subscriptions/``."""

from datetime import datetime

from crafely.db.query import Executor, Row, sql


class UserSubscription(Row, frozen=True):
    """A subscription. ``status`` is active, cancelled or expired."""

    id: str
    status: str
    start_date: datetime
    end_date: datetime | None
    user_id: str
    package_id: str
    created_at: datetime
    updated_at: datetime


class CurrentSubscription(Row, frozen=True):
    """A subscription that counts now, with its package's name."""

    id: str
    package_id: str
    package_name: str
    start_date: datetime
    end_date: datetime | None


class CurrentSubscriptions(Row, frozen=True):
    """What a user has now: every feature once, in alphabetical order, and the subscriptions that give them."""

    features: list[str]
    subscriptions: list[CurrentSubscription]


class UserRateLimit(Row, frozen=True):
    """What the packages of a user allow, in requests a minute."""

    user_id: str
    rate_limit: int


@sql
async def create(
    db: Executor, *, user_id: str, package_id: str, start_date: datetime | None, end_date: datetime | None
) -> UserSubscription | None:
    """Subscribes a user to a package; from now on where no start is given. None where no such package is sold."""


@sql
async def get(db: Executor, *, id: str, user_id: str) -> UserSubscription | None:
    """One of the user's subscriptions, whatever its status."""


@sql
async def list_for_user(
    db: Executor, *, user_id: str, before: datetime, before_id: str, take: int, skip: int
) -> list[UserSubscription]:
    """The user's subscriptions, whatever their status, newest first, from a position on."""


@sql
async def current(db: Executor, *, user_id: str) -> CurrentSubscriptions:
    """What the user has now."""


@sql
async def cancel(
    db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None
) -> UserSubscription | None:
    """Cancels an active subscription, now.

    None where there is none, it has ended before, or it is none of these versions (its updated_at; no versions:
    whichever).
    """


@sql
async def rate_limits(db: Executor, *, user_ids: list[str]) -> list[UserRateLimit]:
    """What the packages of these users allow now, in no order; nothing for a user whose packages do not say."""


@sql
async def expire(db: Executor) -> int:
    """Marks every active subscription whose end has come. Gives how many."""
