"""API keys: how programs authenticate, and what each may do.

A key is shown once, when it is made; what is stored is a hash. A revoked key stays revoked.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from crafely.api.preconditions import IfMatch, matched
from crafely.api.recorder import store
from crafely.api.services import changes
from crafely.api.usage_records import UsageRecord, columns, encode_records
from crafely.api.wire import (
    Body,
    Call,
    FieldError,
    ListQuery,
    Page,
    Problem,
    Query,
    Timestamp,
    found,
    in_utc,
    invalid,
    page,
    position,
)
from crafely.auth import keys
from crafely.auth.families import MAX_OVERLAP, revoke_family
from crafely.auth.permissions import Permissions, allows, duplicates, excess
from crafely.store import api_keys
from crafely.store.api_keys import ApiKey

Name = Annotated[str, Meta(min_length=1, max_length=255, description="For people, to tell keys apart.")]
Token = Annotated[
    str,
    Meta(
        description="The key itself. It is shown this once and kept nowhere: null where the answer is given again to "
        "an Idempotency-Key."
    ),
]
RateLimit = Annotated[int, Meta(ge=1, le=1_000_000, description="Requests a minute; null is the default limit.")]


class NewApiKey(Body, kw_only=True, frozen=True):
    """What a new key is made from."""

    name: Name | None = None
    # What the key may do; never more than the key that makes it.
    permissions: Permissions = []
    expires_at: Timestamp | None = None
    rate_limit: RateLimit | None = None
    # An opening usage record, stored in the same transaction as the key.
    usage: UsageRecord | None = None


class ApiKeyChanges(Body, kw_only=True, frozen=True):
    """What to change; a field that is not sent stays as it is."""

    name: Name | None | UnsetType = UNSET
    permissions: Permissions | UnsetType = UNSET
    expires_at: Timestamp | None | UnsetType = UNSET
    rate_limit: RateLimit | None | UnsetType = UNSET


class CreatedApiKey(ApiKey, frozen=True):
    """A key just made."""

    key: Token | None
    # The id of the opening usage record, where one was asked for.
    usage_id: str | None

    def kept(self) -> "CreatedApiKey":
        """What a replay gives."""
        return msgspec.structs.replace(self, key=None)


class Rotation(Body, kw_only=True, frozen=True):
    """How a key is replaced."""

    overlap_seconds: Annotated[
        int, Meta(ge=0, le=MAX_OVERLAP, description="How long the old key stays good, in seconds; 0 revokes it now.")
    ]


class RotatedApiKey(ApiKey, frozen=True):
    """A key just made in the place of another, which `rotatedFrom` names."""

    key: Token | None

    def kept(self) -> "RotatedApiKey":
        """What a replay gives."""
        return msgspec.structs.replace(self, key=None)


class PresentedKey(Body, kw_only=True, frozen=True):
    """An API key that somebody presents, and what it must be allowed to do."""

    # The key itself, as it was shown when it was made.
    key: Annotated[str, Meta(min_length=1, max_length=255)]
    # What it must hold, every one of them; nothing: any key that is valid will do.
    permissions: Permissions = []


class Verification(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a key is worth now.

    VALID; INSUFFICIENT_PERMISSIONS (valid, but it lacks one that was asked for); RATE_LIMITED (valid, but its limit of
    this minute is used up); REVOKED or EXPIRED (told only to who
    has the right secret); NOT_FOUND (no such key, or another secret); MALFORMED (not an API key at all, or mistyped).
    The fields about the key are null unless the secret is right.
    """

    valid: bool
    code: Literal["VALID", "INSUFFICIENT_PERMISSIONS", "RATE_LIMITED", "REVOKED", "EXPIRED", "NOT_FOUND", "MALFORMED"]
    id: str | None = None
    key_id: str | None = None
    user_id: str | None = None
    permissions: Sequence[str] | None = None
    expires_at: datetime | None = None
    # Requests a minute; of a valid key whatever limit it has, of others their own.
    rate_limit: int | None = None
    # What is left of it, and in how many seconds it begins anew.
    rate_limit_remaining: int | None = None
    rate_limit_reset: int | None = None


class ListApiKeys(ListQuery, kw_only=True, frozen=True):
    """Which keys to list."""

    active: Annotated[bool, Meta(description="true: only active keys; false: only revoked ones.")] | None = None
    expired: (
        Annotated[bool, Meta(description="true: only keys whose end has come; false: only those whose end has not.")]
        | None
    ) = None


class RevokeApiKey(Query, kw_only=True, frozen=True):
    """What to revoke along."""

    family: Annotated[
        bool, Meta(description="true: also every key that it replaced, and every key that replaced it.")
    ] = False


async def create(call: Call, body: NewApiKey) -> CreatedApiKey:
    """Create an API key.

    The answer holds the key itself in `key`, this once: only a hash is stored. A caller can hand out no permission
    that it does not hold. With `usage`, a first usage record of the new key is stored in the same transaction; that
    takes the permission usage:write, too.
    """
    _check_permissions(call, body.permissions)
    expires_at = _check_expiry(body.expires_at)
    _check_usage(call, body.usage)
    new = keys.generate(call.services.settings.key_environment)
    hashed_key = await call.services.hasher.hash(new.secret)
    user_id, usage_id = call.caller.user_id, None
    async with call.services.session(call).transaction() as transaction:
        row = await api_keys.create(
            transaction,
            user_id=user_id,
            key_id=new.key_id,
            hashed_key=hashed_key,
            name=body.name,
            prefix=new.prefix,
            permissions=body.permissions,
            expires_at=expires_at,
            rate_limit=body.rate_limit,
        )
        if body.usage is not None:
            record = columns(
                body.usage, permissions=call.caller.permissions, user_id=user_id, api_key_id=row.id, pointer="/usage"
            )
            records, engine = encode_records([record]), call.services.settings.engine
            (recorded,) = await store(transaction, records=records, engine=engine)
            if recorded.status != "recorded":
                detail = "a record with this eventId is stored"
                raise Problem("already_exists", detail, errors=[FieldError(detail=detail, pointer="/usage/eventId")])
            usage_id = recorded.id
    call.headers["Location"] = f"/v1/api-keys/{row.id}"
    return CreatedApiKey(**msgspec.structs.asdict(row), key=new.token, usage_id=usage_id)


async def verify(call: Call, body: PresentedKey) -> Verification:
    """Verify an API key.

    For services that let their own callers in by API keys: whose key it is, what it may do, and whether it is good now.
    A key that is not good is an answer, too, and has the status 200. A good one counts as used,
    and against its rate limit, as a request of its own would.
    """
    services = call.services
    entry = await services.verifier.examine(body.key)
    if entry is None:
        return _MALFORMED
    record, code, standing = entry.record, entry.code(), None
    if record is None:
        return _NOT_FOUND
    if code == "VALID":
        services.seen(record.id)
        if body.permissions and excess(entry.caller.permissions, body.permissions):
            code = "INSUFFICIENT_PERMISSIONS"
        else:
            standing = await services.rate_limits.present(record)
            if standing is not None and standing.left < 0:
                code = "RATE_LIMITED"
    return Verification(
        valid=code == "VALID",
        code=code,
        id=record.id,
        key_id=record.key_id,
        user_id=record.user_id,
        permissions=record.permissions,
        expires_at=record.expires_at,
        rate_limit=standing.quota if standing is not None else record.rate_limit,
        rate_limit_remaining=max(standing.left, 0) if standing is not None else None,
        rate_limit_reset=standing.seconds if standing is not None else None,
    )


_MALFORMED = Verification(valid=False, code="MALFORMED")
_NOT_FOUND = Verification(valid=False, code="NOT_FOUND")


async def list_(call: Call, query: ListApiKeys) -> Page[ApiKey]:
    """List API keys.

    The caller's own, newest first. `active=true` leaves out revoked ones, `expired=false` those whose end has come:
    both together give the keys that are good now.
    """
    before, before_id = position(query)
    session, user_id = call.services.session(call), call.caller.user_id
    take, skip = query.take + 1, query.skip or 0
    if query.active is None:
        rows = await api_keys.list_for_user(
            session,
            user_id=user_id,
            expired=query.expired,
            before=before,
            before_id=before_id,
            take=take,
            skip=skip,
        )
    else:
        rows = await api_keys.list_by_active(
            session,
            user_id=user_id,
            active=query.active,
            expired=query.expired,
            before=before,
            before_id=before_id,
            take=take,
            skip=skip,
        )
    return page(rows, query)


async def get(call: Call, id: str) -> ApiKey:
    """Read an API key.

    Revoked ones can still be read.
    """
    return found(await api_keys.get(call.services.session(call), id=id, user_id=call.caller.user_id))


async def update(call: Call, id: str, body: ApiKeyChanges, if_match: IfMatch) -> ApiKey:
    """Change an API key.

    Only what is sent changes. A caller can neither hand out a permission that it does not hold nor change a key that
    holds one. A revoked key stays revoked.
    """
    session, user_id = call.services.session(call), call.caller.user_id
    if body.permissions is not UNSET:
        _check_permissions(call, body.permissions)
    if body.expires_at is not UNSET:
        _check_expiry(body.expires_at)
    _check_held(call, found(await api_keys.get(session, id=id, user_id=user_id)))
    row = await api_keys.update(session, id=id, user_id=user_id, versions=if_match, changes=changes(body))
    changed = await matched(row, if_match, lambda: api_keys.get(session, id=id, user_id=user_id))
    # The database tells every process; this one must not answer before it knows.
    call.services.forget_key(changed.key_id)
    return changed


async def rotate(call: Call, id: str, body: Rotation, if_match: IfMatch) -> RotatedApiKey:
    """Rotate an API key.

    A new key takes its place, with the same name, permissions, limit and end; the answer holds it in `key`, this once.
    The old one stays good for `overlapSeconds`, but no longer than it would have been. A caller cannot rotate a key
    that holds a permission that it does not hold. A key that has ended, or has been replaced before, cannot be rotated
    (409).
    """
    session, user_id, services = call.services.session(call), call.caller.user_id, call.services
    old = found(await api_keys.get(session, id=id, user_id=user_id))
    _check_held(call, old)
    _check_good(old)
    new = keys.generate(services.settings.key_environment)
    row = await api_keys.rotate(
        session,
        id=id,
        user_id=user_id,
        # Those that the caller was found to hold: more may have been added since.
        permissions=old.permissions,
        versions=if_match,
        overlap_seconds=body.overlap_seconds,
        key_id=new.key_id,
        hashed_key=await services.hasher.hash(new.secret),
        prefix=new.prefix,
    )
    if row is None:
        now = found(await api_keys.get(session, id=id, user_id=user_id))
        _check_good(now)
        if if_match is not None and now.updated_at not in if_match:
            raise Problem("precondition_failed")
        raise Problem("conflict", "The key's permissions have just been changed. Read it again.")
    services.forget_key_of(call, old.key_id)
    call.headers["Location"] = f"/v1/api-keys/{row.id}"
    return RotatedApiKey(**msgspec.structs.asdict(row), key=new.token)


async def revoke(call: Call, id: str, query: RevokeApiKey, if_match: IfMatch) -> None:
    """Revoke an API key.

    It is refused from now on, for good. It can still be read, and its usage stays. Revoking it again changes nothing.
    With `family=true` the keys that it replaced, and those that replaced it, end with it.
    """
    session, user_id = call.services.session(call), call.caller.user_id
    key_ids: list[str] = []
    if query.family:
        async with session.transaction() as transaction:
            key_id = await api_keys.revoke(transaction, id=id, user_id=user_id, versions=if_match)
            if key_id is not None:
                key_ids = await revoke_family(transaction, id=id, user_id=user_id)
    else:
        key_id = await api_keys.revoke(session, id=id, user_id=user_id, versions=if_match)
    key_ids.append(await matched(key_id, if_match, lambda: api_keys.get(session, id=id, user_id=user_id)))
    for key_id in key_ids:
        call.services.forget_key(key_id)


def _check_permissions(call: Call, permissions: list[str]) -> None:
    if twice := duplicates(permissions):
        raise invalid("expected each permission once", pointer=f"/permissions/{_last(permissions, twice[0])}")
    if excess(call.caller.permissions, permissions):
        raise Problem("insufficient_permissions", "A caller can hand out only permissions that it holds.")


def _last(permissions: list[str], name: str) -> int:
    return len(permissions) - 1 - permissions[::-1].index(name)


def _check_usage(call: Call, record: UsageRecord | None) -> None:
    if record is None:
        return
    if not allows(call.caller.permissions, "usage:write"):
        raise Problem("insufficient_permissions", "An opening usage record takes the permission usage:write.")
    if record.api_key_id is not None:
        raise invalid("expected no apiKeyId: the record belongs to the key that is created", pointer="/usage/apiKeyId")


def _check_held(call: Call, key: ApiKey) -> None:
    if excess(call.caller.permissions, key.permissions):
        raise Problem("insufficient_permissions", "This key holds permissions that the caller does not.")


def _check_good(key: ApiKey) -> None:
    if not key.active:
        raise Problem("conflict", "The key is revoked.")
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        raise Problem("conflict", "The key has expired.")


def _check_expiry(expires_at: datetime | None) -> datetime | None:
    """Give it in UTC."""
    moment = in_utc(expires_at, pointer="/expiresAt") if expires_at is not None else None
    if moment is not None and moment <= datetime.now(UTC):
        raise invalid("expected a time in the future; to end a key now, revoke it", pointer="/expiresAt")
    return moment
