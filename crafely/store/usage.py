"""Usage and its daily sums: ``sql/usage/``."""

from datetime import date, datetime
from decimal import Decimal

import msgspec

from crafely.db.query import Executor, Row, sql


class Usage(Row, frozen=True):
    """One metered call. ``cost`` has twelve places; ``metadata`` is a JSON object, as it was given."""

    id: str
    api_key_id: str
    event_id: str | None
    provider: str | None
    model: str | None
    type: str | None
    tokens_in: int | None
    tokens_out: int | None
    tokens_total: int | None
    cost: Decimal | None
    currency: str | None
    metadata: msgspec.Raw | None
    created_at: datetime


class Recorded(Row, frozen=True):
    """What became of one record: recorded, duplicate (its event was counted before) or unknown_key (not counted).

    ``id`` is None for an unknown key, and for a duplicate whose first was being recorded in the same moment.
    """

    status: str
    id: str | None


class UsageStats(Row, frozen=True):
    """Sums of a group. A column that was not grouped by is None, as is one that the usage did not name."""

    day: date | None
    provider: str | None
    model: str | None
    type: str | None
    currency: str | None
    records: int
    tokens_in: int
    tokens_out: int
    tokens_total: int
    cost: Decimal


class DailyUsage(Row, frozen=True):
    """Sums of one UTC day in one currency."""

    day: date
    currency: str | None
    records: int
    tokens_in: int
    tokens_out: int
    tokens_total: int
    cost: Decimal


class DailyUsageByUser(Row, frozen=True):
    """Sums of one user's UTC day in one currency."""

    user_id: str
    day: date
    currency: str | None
    records: int
    tokens_in: int
    tokens_out: int
    tokens_total: int
    cost: Decimal


class Difference(Row, frozen=True):
    """A group whose daily sums are not what its records add up to; a side that lacks the group is None."""

    day: date
    user_id: str
    provider: str | None
    model: str | None
    type: str | None
    currency: str | None
    raw_records: int | None
    daily_records: int | None
    raw_tokens_in: int | None
    daily_tokens_in: int | None
    raw_tokens_out: int | None
    daily_tokens_out: int | None
    raw_tokens_total: int | None
    daily_tokens_total: int | None
    raw_cost: Decimal | None
    daily_cost: Decimal | None


@sql
async def record(db: Executor, *, records: msgspec.Raw) -> list[Recorded]:
    """Records usage and adds it to the daily sums, in one transaction.

    Takes a JSON array of objects with the columns of ``usage`` but id; created_at may be left out. Gives one line for
    each record, in order.
    """


@sql
async def record_distributed(db: Executor, *, records: msgspec.Raw) -> list[Recorded]:
    """What ``record`` does, where Citus spreads the tables over servers by user."""


@sql
async def list_for_user(
    db: Executor,
    *,
    user_id: str,
    from_time: datetime,
    provider: str | None,
    model: str | None,
    type: str | None,
    before: datetime,
    before_id: str,
    take: int,
    skip: int,
) -> list[Usage]:
    """The user's usage since a time, newest first, from a position on."""


@sql
async def list_for_api_key(
    db: Executor,
    *,
    user_id: str,
    api_key_id: str,
    from_time: datetime,
    provider: str | None,
    model: str | None,
    type: str | None,
    before: datetime,
    before_id: str,
    take: int,
    skip: int,
) -> list[Usage]:
    """One key's usage since a time, newest first, from a position on."""


@sql
async def stats(
    db: Executor,
    *,
    user_id: str,
    from_time: datetime,
    to_time: datetime,
    group_by: list[str],
    take: int,
    skip: int,
) -> list[UsageStats]:
    """Sums from a time (included) to a time (excluded), by any of day, provider, model, type, and by currency."""


@sql
async def daily(db: Executor, *, user_id: str, from_day: date, to_day: date, take: int, skip: int) -> list[DailyUsage]:
    """Sums by UTC day and currency, newest first, from a day (included) to a day (excluded)."""


@sql
async def daily_by_user(db: Executor, *, from_day: date, to_day: date, take: int, skip: int) -> list[DailyUsageByUser]:
    """Every user's sums by UTC day and currency, newest first, from a day (included) to a day (excluded)."""


@sql
async def forget_events(db: Executor, *, older_than: datetime) -> int:
    """Forgets event ids that are older. Gives how many."""


@sql
async def months(db: Executor) -> list[date]:
    """The months that the daily sums have, oldest first, each as its first day."""


@sql
async def reconcile(
    db: Executor, *, from_day: date | None, to_day: date | None, user_id: str | None, take: int
) -> list[Difference]:
    """Where the daily sums are not what the records add up to, from a day (included) to a day (excluded).

    None stands for the first and last day that either side has, and for all users. Ordered by day and group.
    """


@sql
async def expired_month(db: Executor, *, months_kept: int) -> date | None:
    """The oldest month of records, by its first day, that is older than so many before the current one."""


@sql
async def drop_month(db: Executor, *, month: date) -> bool:
    """Drops a month of records, and keeps their daily sums. Gives whether there was one.

    Takes its first day, which lies before the last two months. Raises LockNotAvailable where others hold it up.
    """


@sql
async def is_dropped(db: Executor, *, month: date) -> bool:
    """Whether the records of a month, given by its first day, are gone."""
