"""Verifying API keys: shape and CRC (free), the cache, a coalesced lookup, argon2 (once for each token)."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from crafely.auth import keys
from crafely.auth.hashing import Busy, Hasher
from crafely.auth.key_cache import Entry, KeyCache, KeyRecord

log = logging.getLogger(__name__)

Lookup = Callable[[str], Awaitable[KeyRecord | None]]
Rehash = Callable[[KeyRecord, str], Awaitable[object]]

# A row that keeps changing while it is read is answered from the last reading after so many, and not remembered.
_READINGS = 4


class Verifier:
    """Tells what an API key is worth now.

    Takes the hasher and the cache (their owner closes the first and feeds the second), and two functions: `lookup`
    answers a key id with its row or None, revoked and expired ones too; `rehash` stores a new hash for a row.
    """

    def __init__(self, hasher: Hasher, cache: KeyCache, *, lookup: Lookup, rehash: Rehash) -> None:
        self._hasher = hasher
        self._cache = cache
        self._lookup = lookup
        self._rehash = rehash
        # argon2 at work, by token and hash: whoever comes meanwhile with the same waits for the same.
        self._at_work: dict[tuple[bytes, str | None], asyncio.Task[None]] = {}
        self.recall = cache.recall

    def tried(self, token: str) -> bool:
        """Whether `token` is remembered as one whose secret is right; its row may say otherwise by now."""
        entry = self._cache.find(self._cache.digest(token))
        return entry is not None and entry.fits

    async def examine(self, token: str) -> Entry | None:
        """What the API key `token` is worth, from the cache or the database; None when its shape or CRC is wrong.

        The row is always read after the secret was tried, so what is told was true after the caller asked. Raises
        Busy, and what `lookup` raises.
        """
        digest = self._cache.digest(token)
        entry = self._cache.find(digest)
        if entry is not None:
            if self._cache.believes(entry):
                return entry
            key_id = entry.key_id
        elif (parsed := keys.parse(token)) is not None:
            key_id = parsed.key_id
        else:
            return None
        self._cache.misses += 1
        for _ in range(_READINGS):
            with self._cache.reading(key_id) as reading:
                record = await self._lookup(key_id)
                against = record.hashed_key if record is not None else None
                entry = self._cache.known(digest, against)
                if entry is not None:
                    entry.read(record if entry.fits else None, reading.began)
                    if not reading.overtaken:
                        return entry
                    # It may be what was before the change: look again, and let nobody believe it meanwhile.
                    entry.read_at = -math.inf
            if entry is None and (parsed := keys.parse(token)) is not None:
                await self._learn(digest, parsed, record)
        if entry is None:
            raise Busy("the key's hash changes faster than it can be tried")
        return entry

    async def _learn(self, digest: bytes, parsed: keys.ParsedKey, record: KeyRecord | None) -> None:
        name = (digest, record.hashed_key if record is not None else None)
        task = self._at_work.get(name)
        if task is None:
            task = self._at_work[name] = asyncio.create_task(self._try(digest, parsed, record))
            task.add_done_callback(lambda done: self._done(name, done))
        # Whoever leaves does not take the work away from the others.
        await asyncio.shield(task)

    async def _try(self, digest: bytes, parsed: keys.ParsedKey, record: KeyRecord | None) -> None:
        """Tries a secret on a row's hash (no row: on a dummy, which takes as long), and keeps what came of it."""
        against = record.hashed_key if record is not None else None
        verdict = await self._hasher.verify(against, parsed.secret)
        self._cache.keep(Entry(digest, parsed.key_id, against, fits=verdict.ok))
        if verdict.outdated and record is not None:
            await self._renew_hash(record, parsed.secret)

    def _done(self, name: tuple[bytes, str | None], task: "asyncio.Task[None]") -> None:
        del self._at_work[name]
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain when everybody has left

    async def _renew_hash(self, record: KeyRecord, secret: str) -> None:
        # The secret is in our hands only now. The key is good either way, so a failure waits for its next use.
        try:
            await self._rehash(record, await self._hasher.hash(secret))
        except Busy:
            log.info("the hash of %s keeps its old parameters: no capacity now", record.id)
        except Exception:
            log.exception("the hash of %s keeps its old parameters", record.id)
