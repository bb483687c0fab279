"""API keys: ``sql/api_keys/``."""

from datetime import datetime

import msgspec

from crafely.db.query import Executor, Row, sql


class ApiKey(Row, frozen=True):
    """An API key as its owner sees it: never the secret, never its hash."""

    id: str
    key_id: str
    name: str | None
    prefix: str | None
    permissions: list[str]
    active: bool
    expires_at: datetime | None
    rate_limit: int | None
    # The key that this one replaced.
    rotated_from: str | None
    last_used_at: datetime | None
    created_at: datetime
    updated_at: datetime


class KeyRecord(Row, frozen=True):
    """What a request is authenticated against. Never leaves the process."""

    id: str
    key_id: str
    hashed_key: str
    user_id: str
    permissions: list[str]
    active: bool
    expires_at: datetime | None
    rate_limit: int | None

    def __repr__(self) -> str:
        return f"KeyRecord({self.id})"


@sql
async def create(
    db: Executor,
    *,
    user_id: str,
    key_id: str,
    hashed_key: str,
    name: str | None,
    prefix: str | None,
    permissions: list[str],
    expires_at: datetime | None,
    rate_limit: int | None,
) -> ApiKey:
    """A new key. Takes the public half of the token and the argon2id hash of its secret half."""


@sql
async def get(db: Executor, *, id: str, user_id: str) -> ApiKey | None:
    """One of the user's keys, active or not."""


@sql
async def list_for_user(
    db: Executor,
    *,
    user_id: str,
    expired: bool | None = None,
    before: datetime,
    before_id: str,
    take: int,
    skip: int,
) -> list[ApiKey]:
    """The user's keys, active or not, newest first, from a position on.

    Expired, True: only those whose end has come; False: only those whose end has not.
    """


@sql
async def list_by_active(
    db: Executor,
    *,
    user_id: str,
    active: bool,
    expired: bool | None = None,
    before: datetime,
    before_id: str,
    take: int,
    skip: int,
) -> list[ApiKey]:
    """The user's active (or revoked) keys, newest first, from a position on.

    Expired, True: only those whose end has come; False: only those whose end has not.
    """


@sql
async def rotate(
    db: Executor,
    *,
    id: str,
    user_id: str,
    permissions: list[str],
    versions: list[datetime] | None = None,
    overlap_seconds: int,
    key_id: str,
    hashed_key: str,
    prefix: str | None,
) -> ApiKey | None:
    """A new key in the place of another, which ends after the overlap; 0 revokes it.

    Takes the old one's id and the permissions that it was seen to hold, and of the new one the public half and the
    argon2id hash of its secret half. None where the old one is not there, has ended, holds others, or is none of these
    versions (its updated_at; no versions: whichever).
    """


@sql
async def revoke_family(db: Executor, *, id: str, user_id: str) -> list[str]:
    """Revokes a key and all that it replaced, or that replaced it. Gives the public ids of those that were active."""


@sql
async def update(
    db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None, changes: msgspec.Raw
) -> ApiKey | None:
    """Changes the columns that the JSON object names: name, permissions, expires_at, rate_limit.

    None where there is no such key, or it is none of these versions (its updated_at; no versions: whichever).
    """


@sql
async def revoke(db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None) -> str | None:
    """Revokes a key for good. Gives its public id.

    None where the user has no such key, or it is none of these versions.
    """


@sql
async def rehash(db: Executor, *, id: str, user_id: str, hashed_key: str) -> int:
    """Replaces the hash of a secret that was just verified."""


@sql
async def lookup(db: Executor, *, key_ids: list[str]) -> list[KeyRecord]:
    """The keys of these public ids, of any user, in no order; unknown ids give nothing."""


@sql
async def touch(db: Executor, *, ids: list[str], used_at: list[datetime]) -> int:
    """Notes when keys were last used, never backwards. Two arrays of one length."""
