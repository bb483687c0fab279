"""Who is calling, and what they may do: from a token to a Caller.

Nothing here knows the database: the Authenticator is handed the three functions it needs.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Container
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from crafely.auth import keys
from crafely.auth.clerk import Clerk, InvalidToken
from crafely.auth.hashing import Busy, Hasher
from crafely.auth.permissions import ADMIN, EVERYTHING

log = logging.getLogger(__name__)


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller: exactly one of `api_key_id` (``key_…``) and `session_id` (``sess_…``) is set."""

    user_id: str
    permissions: frozenset[str]
    api_key_id: str | None = None
    session_id: str | None = None


class KeyRecord(Protocol):
    """What the Authenticator reads of a row of api_keys."""

    @property
    def id(self) -> str:
        """The row's id, ``key_…``."""

    @property
    def key_id(self) -> str:
        """The public part of the token."""

    @property
    def hashed_key(self) -> str:
        """The argon2id hash of the token's secret."""

    @property
    def user_id(self) -> str:
        """The owner."""

    @property
    def permissions(self) -> Collection[str]:
        """What the key may do."""

    @property
    def active(self) -> bool:
        """False once revoked."""

    @property
    def expires_at(self) -> datetime | None:
        """When the key ends, with a time zone; None for never."""


Lookup = Callable[[str], Awaitable[KeyRecord | None]]
Seen = Callable[[str], None]
Rehash = Callable[[KeyRecord, str], Awaitable[object]]

_REASONS = {
    "MALFORMED": "the token is neither an API key nor a session token",
    "NOT_FOUND": "there is no such API key",
    "REVOKED": "the API key has been revoked",
    "EXPIRED": "the token has expired",
    "NOT_CONFIGURED": "session tokens are not accepted here; use an API key",
    "WRONG_ALGORITHM": "the session token is not signed with RS256",
    "UNKNOWN_KEY": "the session token is signed with a key that the issuer does not have",
    "BAD_SIGNATURE": "the session token's signature is wrong",
    "MISSING_CLAIM": "the session token lacks one of iss, sub, sid, exp, nbf, iat",
    "NOT_YET_VALID": "the session token is not valid yet",
    "WRONG_ISSUER": "the session token is from another issuer",
    "WRONG_PARTY": "the session token was made for another site",
    "PENDING": "the session has tasks left; finish signing in",
}


class Denied(Exception):  # noqa: N818 - an answer to the caller, not a failure of ours
    """The token is refused: HTTP 401. `code` is a word for programs, str() a sentence for people."""

    def __init__(self, code: str) -> None:
        super().__init__(_REASONS[code])
        self.code = code


class Authenticator:
    """Turns tokens into callers.

    Takes the hasher and Clerk (their owner closes them), the Clerk user ids that are admins, and three functions:
    `lookup` answers a key id with its row or None, revoked and expired ones too; `seen` notes that the key with this
    row id was used, at once and without I/O; `rehash` stores a new hash for a row.
    """

    def __init__(
        self, hasher: Hasher, clerk: Clerk, *, admins: Container[str], lookup: Lookup, seen: Seen, rehash: Rehash
    ) -> None:
        self._hasher = hasher
        self._clerk = clerk
        self._admins = admins
        self._lookup = lookup
        self._seen = seen
        self._rehash = rehash

    async def authenticate(self, token: str) -> Caller:
        """The caller behind `token`, an API key or a Clerk session token; its beginning decides which.

        Raises Denied; Busy (crafely.auth.hashing) and Unavailable (crafely.auth.clerk) when nobody can say now; and
        what `lookup` raises.
        """
        if token.startswith(keys.PREFIX):
            record = await self.check_key(token)
            return Caller(user_id=record.user_id, permissions=frozenset(record.permissions), api_key_id=record.id)
        try:
            session = await self._clerk.verify(token)
        except InvalidToken as error:
            raise Denied(error.code.upper()) from error
        permissions = {EVERYTHING, ADMIN} if session.user_id in self._admins else {EVERYTHING}
        return Caller(user_id=session.user_id, permissions=frozenset(permissions), session_id=session.session_id)

    async def check_key(self, token: str) -> KeyRecord:
        """The row of the API key `token`, which is active and not expired, and has now been seen.

        Raises Denied with MALFORMED, NOT_FOUND, REVOKED or EXPIRED; Busy; and what `lookup` raises. A wrong secret is
        NOT_FOUND: only who holds the key learns that it exists, or that it has ended.
        """
        parsed = keys.parse(token)
        if parsed is None:
            raise Denied("MALFORMED")
        record = await self._lookup(parsed.key_id)
        verdict = await self._hasher.verify(record.hashed_key if record else None, parsed.secret)
        if record is None or not verdict.ok:
            raise Denied("NOT_FOUND")
        if not record.active:
            raise Denied("REVOKED")
        if record.expires_at is not None and record.expires_at <= datetime.now(UTC):
            raise Denied("EXPIRED")
        self._seen(record.id)
        if verdict.outdated:
            await self._renew_hash(record, parsed.secret)
        return record

    async def _renew_hash(self, record: KeyRecord, secret: str) -> None:
        # The secret is in our hands only now. The key is good either way, so a failure waits for its next use.
        try:
            await self._rehash(record, await self._hasher.hash(secret))
        except Busy:
            log.info("the hash of %s keeps its old parameters: no capacity now", record.id)
        except Exception:
            log.exception("the hash of %s keeps its old parameters", record.id)
