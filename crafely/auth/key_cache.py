"""What is known of the API keys that were presented lately, so that a hot key costs neither a query nor a hash.

Two facts are kept for a token, and they age differently. Whether its secret fits a hash is pure arithmetic: true for
ever. The row (active, expiry, permissions) changes: it is believed while the database would tell us of a change (see
``trust``), until it does (``evict``), and at most for a time to live. A row that was being read when its change was
told is not believed either: a revoked key must not be brought back by a request in flight.

Nothing here holds a token: entries are found by a keyed digest (BLAKE2b, RFC 7693), whose key lives as long as the
process, so neither a dump of the memory nor crafted tokens help anyone.
"""

import math
import secrets
from collections.abc import Collection
from datetime import datetime
from hashlib import blake2b
from time import monotonic, time
from typing import Protocol

import msgspec

DIGEST_BYTES = 16
# Seconds for which it is believed that a key does not exist, or that a secret is wrong.
NEGATIVE_SECONDS = 5.0
# Entries that are passed over, at most, when room is made for one.
_CHANCES = 16


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller: exactly one of `api_key_id` (``key_…``) and `session_id` (``sess_…``) is set."""

    user_id: str
    permissions: frozenset[str]
    api_key_id: str | None = None
    session_id: str | None = None
    # The key's own, in requests a minute; None where it has none.
    rate_limit: int | None = None


class KeyRecord(Protocol):
    """What is read of a row of api_keys."""

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

    @property
    def rate_limit(self) -> int | None:
        """Requests a minute; None for the default."""


class Entry:
    """A token that was presented. ``record`` is its row where the secret fits, None where it does not or there is none.

    ``read_at`` is when the row was asked for (monotonic seconds, -inf: not to be believed). ``against`` is the hash
    that the secret was tried on (None: there was no row), ``fits`` what came of it.
    """

    __slots__ = ("against", "caller", "digest", "expires", "fits", "key_id", "read_at", "record", "used")

    def __init__(self, digest: bytes, key_id: str, against: str | None, *, fits: bool) -> None:
        self.digest = digest
        self.key_id = key_id
        self.against = against
        self.fits = fits
        self.read_at = -math.inf
        self.record: KeyRecord | None = None
        self.caller: Caller | None = None
        # Seconds since 1970.
        self.expires = math.inf
        # Since it was last passed over when room was made.
        self.used = False

    def read(self, record: KeyRecord | None, read_at: float) -> None:
        """Takes over a row that was asked for at a time, unless a later reading was quicker."""
        if read_at < self.read_at:
            return
        if record is not None and record != self.record:
            self.caller = Caller(
                user_id=record.user_id,
                permissions=frozenset(record.permissions),
                api_key_id=record.id,
                rate_limit=record.rate_limit,
            )
            self.expires = record.expires_at.timestamp() if record.expires_at is not None else math.inf
        self.record = record
        self.read_at = read_at

    def code(self) -> str:
        """VALID, NOT_FOUND, REVOKED or EXPIRED, at this moment. A wrong secret is NOT_FOUND."""
        if self.record is None:
            return "NOT_FOUND"
        if not self.record.active:
            return "REVOKED"
        return "VALID" if self.expires > time() else "EXPIRED"


class KeyCache:
    """The entries of one process, at most so many of each kind: those that fit, and those that do not.

    The two are apart, so that nobody can push good keys out by presenting bad ones. The oldest go first, but for those
    that were used since they were last passed over.
    """

    def __init__(self, *, size: int, seconds: float) -> None:
        """Takes how many entries of a kind are kept, and the seconds for which a row is believed at most."""
        # Copied for each token: the key is mixed in once, a third of what a digest costs.
        self._keyed = blake2b(key=secrets.token_bytes(32), digest_size=DIGEST_BYTES)
        self._size = size
        self._seconds = seconds
        self._entries: tuple[dict[bytes, Entry], dict[bytes, Entry]] = ({}, {})
        self._bad, self._good = self._entries
        self._of_key: dict[str, list[Entry]] = {}
        # Rows read before this moment are not believed; never, while nobody tells us of changes.
        self._since = math.inf
        # Key ids whose rows are being read, how often, and when they were last told to have changed.
        self._reading: dict[str, list[float]] = {}
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._bad) + len(self._good)

    @property
    def trusted(self) -> bool:
        """Whether rows are believed at all."""
        return self._since < math.inf

    def trust(self) -> None:
        """From now on every change is told: rows that are read from now on are believed."""
        self._since = monotonic()

    def distrust(self) -> None:
        """Changes may go untold: no row is believed, each is read anew. What was hashed stays known."""
        self._since = math.inf

    def digest(self, token: str) -> bytes:
        """Under which a token is kept. Any text will do: a header may hold bytes that are no UTF-8."""
        digest = self._keyed.copy()
        digest.update(token.encode("utf-8", "surrogatepass"))
        return digest.digest()

    def recall(self, token: str) -> Entry | None:
        """The entry of a token whose row is believed now; None where somebody has to look."""
        entry = self.find(self.digest(token))
        return entry if entry is not None and self.believes(entry) else None

    def find(self, digest: bytes) -> Entry | None:
        """The entry of a token, however old."""
        return self._good.get(digest) or self._bad.get(digest)

    def believes(self, entry: Entry) -> bool:
        """Whether an entry's row is believed now; then it counts as used."""
        read_at = entry.read_at
        seconds = self._seconds if entry.fits else min(self._seconds, NEGATIVE_SECONDS)
        if read_at > self._since and read_at + seconds > monotonic():
            self.hits += 1
            entry.used = True
            return True
        return False

    def known(self, digest: bytes, against: str | None) -> Entry | None:
        """The entry of a token that was tried on this very hash (None: on no row), however old; None if it was not."""
        entry = self.find(digest)
        return entry if entry is not None and entry.against == against else None

    def keep(self, entry: Entry) -> None:
        """Keeps an entry in place of what was known of its token."""
        for kind in self._entries:
            if (old := kind.pop(entry.digest, None)) is not None:
                self._forget(old)
        kind = self._entries[entry.fits]
        if len(kind) >= self._size:
            self._make_room(kind)
        kind[entry.digest] = entry
        self._of_key.setdefault(entry.key_id, []).append(entry)

    def _make_room(self, kind: dict[bytes, Entry]) -> None:
        for _ in range(_CHANCES):
            oldest = kind.pop(next(iter(kind)))
            if not oldest.used:
                break
            oldest.used = False
            kind[oldest.digest] = oldest
        else:
            oldest = kind.pop(next(iter(kind)))
        self._forget(oldest)

    def _forget(self, entry: Entry) -> None:
        of_key = self._of_key[entry.key_id]
        of_key.remove(entry)
        if not of_key:
            del self._of_key[entry.key_id]

    def evict(self, key_id: str) -> None:
        """The row of this key has changed, or is gone: what was read of it before is not believed any more."""
        self.evictions += 1
        for entry in self._of_key.get(key_id, ()):
            entry.read_at = -math.inf
        if (reading := self._reading.get(key_id)) is not None:
            reading[1] = monotonic()

    def flush(self) -> None:
        """Every row has changed, or is gone."""
        now = monotonic()
        # Told while nobody listens yet, it is no reason to believe anything.
        self._since = max(self._since, now)
        for reading in self._reading.values():
            reading[1] = now

    def reading(self, key_id: str) -> "Reading":
        """To be held (``with``) while the row of a key is being read."""
        return Reading(self._reading, key_id)


class Reading:
    """One row that is being read."""

    __slots__ = ("_all", "_key_id", "_state", "began")

    def __init__(self, all_: dict[str, list[float]], key_id: str) -> None:
        self._all = all_
        self._key_id = key_id

    def __enter__(self) -> "Reading":
        self._state = self._all.setdefault(self._key_id, [0, -math.inf])
        self._state[0] += 1
        self.began = monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._state[0] -= 1
        if not self._state[0]:
            del self._all[self._key_id]

    @property
    def overtaken(self) -> bool:
        """Whether the row was told to have changed since the reading began."""
        return self._state[1] >= self.began
