"""The audit trail, and the hash chain of seals over it: ``sql/audit_log/``. Digests are in hexadecimal."""

from datetime import date, datetime

import msgspec

from crafely.db.query import Executor, Row, sql


class AuditChange(Row, frozen=True):
    """That a row changed: whose and which one, the columns whose values changed, and who did it through which request.

    ``user_id`` is None for nobody's row, ``row_id`` for a truncate, the actor's user, key and request where the change
    did not come through them: then ``actor_role`` says what ran it.
    """

    id: str
    created_at: datetime
    user_id: str | None
    table_name: str
    row_id: str | None
    action: str
    columns: list[str]
    actor_user_id: str | None
    actor_api_key_id: str | None
    actor_role: str
    request_id: str | None


class AuditEntry(AuditChange, frozen=True):
    """A change with the values before and after, as JSON objects of columns; secrets read [secret]."""

    old: msgspec.Raw | None
    new: msgspec.Raw | None


class Sealed(Row, frozen=True):
    """How many rows a call has sealed, and the chain's head; None where nothing was ever sealed, or others do it."""

    row_count: int
    seal_id: int | None
    head: str | None


class Head(Row, frozen=True):
    """The last seal. Whoever keeps its digest elsewhere finds a chain that was recomputed or cut."""

    digest: str
    id: int
    created_at: datetime


class Verified(Row, frozen=True):
    """A seal, and what became of it and of its rows. ``kind`` is batch, drop or restart.

    ``last_id`` is the seal before it (None: there is none), ``follows`` whether it is as it was made, after that one.
    ``row_count`` rows should be there (of a dropped month, none), ``found`` are; ``rows_match``: as they were sealed.
    """

    id: int
    kind: str
    month: date | None
    digest: str
    last_id: int | None
    follows: bool
    row_count: int
    found: int
    rows_match: bool


class Harm(Row, frozen=True):
    """A row that is not as it was sealed. ``change`` is altered, removed or inserted."""

    id: int
    change: str


class Unsealed(Row, frozen=True):
    """How many rows no seal covers yet, and since when."""

    row_count: int
    since: datetime | None


@sql
async def get(db: Executor, *, id: int, user_id: str | None) -> AuditEntry | None:
    """One change of a user's rows; None: of anybody's."""


@sql
async def list_all(
    db: Executor,
    *,
    table_name: str | None,
    row_id: str | None,
    action: str | None,
    actor_user_id: str | None,
    request_id: str | None,
    from_time: datetime,
    to_time: datetime,
    before_id: int,
    take: int,
    skip: int,
) -> list[AuditChange]:
    """All changes, the last written first, from a position on, from a time (included) to a time (excluded)."""


@sql
async def list_for_user(
    db: Executor,
    *,
    user_id: str,
    table_name: str | None,
    row_id: str | None,
    action: str | None,
    actor_user_id: str | None,
    request_id: str | None,
    from_time: datetime,
    before: datetime,
    before_id: int,
    take: int,
    skip: int,
) -> list[AuditChange]:
    """The changes of one user's rows, newest first, from a position on, since a time."""


@sql
async def list_for_row(
    db: Executor,
    *,
    user_id: str | None,
    table_name: str,
    row_id: str,
    action: str | None,
    actor_user_id: str | None,
    request_id: str | None,
    from_time: datetime,
    before: datetime,
    before_id: int,
    take: int,
    skip: int,
) -> list[AuditChange]:
    """The history of one row, newest first, from a position on, since a time."""


@sql
async def list_for_request(
    db: Executor,
    *,
    user_id: str | None,
    table_name: str | None,
    row_id: str | None,
    action: str | None,
    actor_user_id: str | None,
    request_id: str,
    from_time: datetime,
    before: datetime,
    before_id: int,
    take: int,
    skip: int,
) -> list[AuditChange]:
    """What one request changed, newest first, from a position on, since a time."""


@sql
async def list_for_actor(
    db: Executor,
    *,
    table_name: str | None,
    row_id: str | None,
    action: str | None,
    actor_user_id: str,
    request_id: str | None,
    from_time: datetime,
    before: datetime,
    before_id: int,
    take: int,
    skip: int,
) -> list[AuditChange]:
    """What one user changed, newest first, from a position on, since a time."""


@sql
async def seal(db: Executor) -> Sealed:
    """Seals what can be sealed now, at most 10,000 rows; after a restore into another cluster, the whole trail.

    Call it until it seals nothing; after a restore, once, before anybody writes.
    """


@sql
async def drop_month(db: Executor, *, months_kept: int) -> date | None:
    """Drops the oldest month of the trail that is older than so many (2 to 1,200) before the current one.

    Gives the month, or None: there is none, it is not all sealed, or somebody is sealing. Raises psycopg's
    LockNotAvailable where somebody holds the table for longer than half a second.
    """


@sql
async def head(db: Executor) -> Head | None:
    """The last seal of the chain."""


@sql
async def verify(db: Executor, *, after_id: int, take: int) -> list[Verified]:
    """The seals after one (0: from the first on), in order, held against the chain and the rows."""


@sql
async def compare(db: Executor, *, id: int, take: int) -> list[Harm]:
    """The rows of one batch that are not as they were sealed, by id."""


@sql
async def unsealed(db: Executor) -> Unsealed:
    """What no seal covers yet."""
