"""Packages: ``sql/packages/``."""

from datetime import datetime
from decimal import Decimal

import msgspec

from crafely.db.query import Executor, Row, sql


class Package(Row, frozen=True):
    """A package. ``price`` has two places; ``interval`` is month or year; ``rate_limit`` is requests a minute."""

    id: str
    name: str
    description: str | None
    price: Decimal
    features: list[str]
    interval: str
    active: bool
    rate_limit: int | None
    created_at: datetime
    updated_at: datetime


@sql
async def create(
    db: Executor,
    *,
    name: str,
    description: str | None,
    price: Decimal,
    features: list[str],
    interval: str,
    active: bool,
    rate_limit: int | None,
) -> Package:
    """A new package."""


@sql
async def get(db: Executor, *, id: str) -> Package | None:
    """One package, sold or not."""


@sql
async def list_all(
    db: Executor, *, active: bool | None, before: datetime, before_id: str, take: int, skip: int
) -> list[Package]:
    """Packages, newest first, from a position on: those that are sold, those that are not, or (None) all."""


@sql
async def update(
    db: Executor, *, id: str, versions: list[datetime] | None = None, changes: msgspec.Raw
) -> Package | None:
    """Changes the columns that the JSON object names: name, description, price, features, interval, active,
    rate_limit.

    None where there is no such package, or it is none of these versions (its updated_at; no versions: whichever).
    """
