"""Rate limits: how many requests a key, a user and an address may make in a minute.

Counts are for minutes of the clock. That is one number to keep and one to compare, exact in what it tells the client;
its price is that two minutes' worth may come around a full minute. One process counts in a dictionary: the memory
storage of `limits` looks at all of its counters at every request (11 µs with one, 19 ms with 100,000). Where
CRAFELY_RATE_LIMIT_STORAGE names a Redis or Valkey, `limits` counts there, for all workers together. While that is away
each worker counts alone: neither is everybody turned away nor may anybody do what he likes.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic, time
from typing import NamedTuple
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage
from valkey import ValkeyError
from valkey.asyncio import BlockingConnectionPool

from crafely.auth.key_cache import Caller, KeyRecord
from crafely.config import Settings, SettingsError

log = logging.getLogger(__name__)

# The window of every limit.
SECONDS = 60
# The most names that are counted in a minute, of callers and of addresses each; then the first ones are forgotten.
MAX_NAMES = 100_000
# How long a storage may take to answer, and for how long it is left alone after it has not.
ANSWER_SECONDS = 0.25
RETRY_SECONDS = 1.0
CONNECTIONS = 16
SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
# The most users whose packages' limits are remembered.
MAX_PACKAGES = 100_000

# What Exceeded names.
KEY, USER, ADDRESS, PRESENTED = "key", "user", "address", "presented"

PackageLimit = Callable[[str], Awaitable[int | None]]

# draft-ietf-httpapi-ratelimit-headers-10: q is the quota, w the window, r what is left, t when there is more again.
_ONE = b'RateLimit-Policy: "%b";q=%d;w=60\r\nRateLimit: "%b";r=%d;t=%d\r\n'
_BOTH = b'RateLimit-Policy: "key";q=%d;w=60, "user";q=%d;w=60\r\nRateLimit: "key";r=%d;t=%d, "user";r=%d;t=%d\r\n'


class Exceeded(Exception):  # noqa: N818 - an answer to the caller, not a failure of ours
    """A limit is used up: HTTP 429. ``name`` says which, ``quota`` is requests a minute, ``seconds`` the wait."""

    def __init__(self, name: str, quota: int, seconds: int) -> None:
        super().__init__(name)
        self.name = name
        self.quota = quota
        self.seconds = seconds


class Standing(NamedTuple):
    """How a key stands: its limit in requests a minute, what is left of it (below 0: refused), seconds to the next."""

    quota: int
    left: int
    seconds: int


class _Counts:
    """What was counted in this minute, by name."""

    def __init__(self) -> None:
        self._minute = 0
        self._counts: dict[str, int] = {}

    def add(self, name: str, minute: int) -> int:
        """Counts one more, and gives how many there are now."""
        if minute != self._minute:
            self._begin(minute)
        counts = self._counts
        count = counts.get(name, 0) + 1
        if count == 1 and len(counts) >= MAX_NAMES:
            del counts[next(iter(counts))]
        counts[name] = count
        return count

    def get(self, name: str, minute: int) -> int:
        if minute != self._minute:
            self._begin(minute)
        return self._counts.get(name, 0)

    def _begin(self, minute: int) -> None:
        # Another minute, not a later one: a clock may be put back.
        self._minute, self._counts = minute, {}


class _Shared:
    """The counts of all workers, in a storage of `limits`."""

    def __init__(self, url: str) -> None:
        scheme = urlsplit(url).scheme
        if scheme not in SCHEMES:
            raise SettingsError(f"CRAFELY_RATE_LIMIT_STORAGE: a URL that begins with {', '.join(SCHEMES)} and ://")
        try:
            # A pool that waits: more requests than connections are no failure.
            self._pool = BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS
            )
            self._storage = RedisStorage(
                "async+valkey://",
                key_prefix="crafely",
                connection_pool=self._pool,  # type: ignore[arg-type]  # documented, but not annotated
            )
        except (ValkeyError, ValueError) as error:
            raise SettingsError(
                f"CRAFELY_RATE_LIMIT_STORAGE: not a URL of Redis or Valkey ({type(error).__name__})"
            ) from None
        self.away = False
        self.losses = 0
        self._again = 0.0

    async def add(self, name: str, minute: int) -> int | None:
        """Counts one more, and gives how many there are now; None: nobody can say."""
        return await self._ask(self._storage.incr, f"{name}/{minute}", SECONDS)

    async def get(self, name: str, minute: int) -> int | None:
        """How many there are; None: nobody can say."""
        return await self._ask(self._storage.get, f"{name}/{minute}")

    async def _ask(self, ask: Callable[..., Awaitable[int]], *arguments: str | int) -> int | None:
        if self.away:
            now = monotonic()
            if now < self._again:
                return None
            # Whoever comes meanwhile does not wait for the attempt.
            self._again = now + RETRY_SECONDS
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                count = await ask(*arguments)
        except (ValkeyError, OSError) as error:  # a TimeoutError is an OSError
            self._lose(error)
            return None
        if self.away:
            self.away = False
            log.info("the storage of rate limits is back: workers count together again")
        return count

    def _lose(self, error: Exception) -> None:
        self._again = monotonic() + RETRY_SECONDS
        if not self.away:
            self.away = True
            self.losses += 1
            # What it says may name the address, and so a password.
            log.warning("the storage of rate limits is away (%s): each worker counts alone", type(error).__name__)

    async def close(self) -> None:
        await self._pool.disconnect()


class RateLimits:
    """Counts requests and says when it is enough.

    Takes the settings (SettingsError where CRAFELY_RATE_LIMIT_STORAGE is no such URL) and what says how much the
    packages of a user allow, in requests a minute. Connects to nothing before the first request.
    """

    def __init__(self, settings: Settings, *, package_limit: PackageLimit) -> None:
        self._default = None if settings.rate_limit == "off" else settings.rate_limit
        self._user = None if settings.rate_limit_user == "off" else settings.rate_limit_user
        self._failures = None if settings.rate_limit_failures == "off" else settings.rate_limit_failures
        # Whether a key without a limit has what the packages allow.
        self._key_asks = settings.rate_limit is None
        self._package_limit = package_limit
        # By user: what the packages allow, and the minute in which that was asked.
        self._packages: dict[str, tuple[int | None, int]] = {}
        self._asking: dict[str, asyncio.Task[int | None]] = {}
        # Nobody could say when it was asked last.
        self._unknown = False
        # Each apart: whoever invents addresses pushes no caller's count out.
        self._of = {KEY: _Counts(), USER: _Counts(), ADDRESS: _Counts()}
        self._keys, self._users = self._of[KEY], self._of[USER]
        self._shared = _Shared(settings.rate_limit_storage) if settings.rate_limit_storage else None
        # Refusals by name, for the metrics.
        self.refusals: Counter[str] = Counter()

    @property
    def away(self) -> bool:
        """Whether there is a storage and it does not answer."""
        return self._shared is not None and self._shared.away

    async def admit(self, caller: Caller) -> bytes:
        """Counts a request of this caller: for its key, and for its user.

        Gives the lines RateLimit-Policy and RateLimit of the answer's head, each with its line break; nothing where no
        limit holds. Raises Exceeded. What a key is refused is not counted for its user, whose other keys go on.
        """
        # What is looked up in place here, though there are methods for it, is so in every request.
        now = int(time())
        minute = now // SECONDS
        seconds = SECONDS - now % SECONDS
        user_id, key_id, key, user = caller.user_id, caller.api_key_id, caller.rate_limit, self._user
        if key_id is not None and key is None:
            key = self._default
        if user is not None or (self._key_asks and key_id is not None and key is None):
            known = self._packages.get(user_id)
            package = known[0] if known is not None and known[1] == minute else await self._package(user_id, minute)
            if package is not None:
                user = user and package
                if key is None and self._key_asks and key_id is not None:
                    key = package
        if key is not None and key_id is not None:
            count = self._keys.add(key_id, minute) if self._shared is None else await self._count(KEY, key_id, minute)
            key_left = key - count
            if key_left < 0:
                raise self._refused(KEY, key, seconds)
            if user is None:
                return _ONE % (b"key", key, b"key", key_left, seconds)
        elif user is None:
            return b""
        count = self._users.add(user_id, minute) if self._shared is None else await self._count(USER, user_id, minute)
        user_left = user - count
        if user_left < 0:
            raise self._refused(USER, user, seconds)
        if key is None or key_id is None:
            return _ONE % (b"user", user, b"user", user_left, seconds)
        return _BOTH % (key, user, key_left, seconds, user_left, seconds)

    async def present(self, record: KeyRecord) -> Standing | None:
        """Counts a use of a key that was presented to somebody else, and says how it stands; None: it has no limit."""
        now = int(time())
        minute = now // SECONDS
        quota = record.rate_limit or self._default
        if quota is None and self._key_asks:
            quota = await self._package(record.user_id, minute)
        if quota is None:
            return None
        count = self._keys.add(record.id, minute) if self._shared is None else await self._count(KEY, record.id, minute)
        if count > quota:
            self.refusals[PRESENTED] += 1
        return Standing(quota, quota - count, SECONDS - now % SECONDS)

    async def attempt(self, address: str) -> None:
        """Raises Exceeded where too many attempts to authenticate from this address have failed in this minute.

        Attempts that are under way count only when they have failed: good keys that come all at once are no attack.
        """
        if self._failures is None:
            return
        now = int(time())
        minute, count = now // SECONDS, None
        if self._shared is not None:
            count = await self._shared.get(f"{ADDRESS}/{address}", minute)
        if count is None:
            count = self._of[ADDRESS].get(address, minute)
        if count >= self._failures:
            raise self._refused(ADDRESS, self._failures, SECONDS - now % SECONDS)

    async def failed(self, address: str) -> None:
        """An attempt from this address has failed."""
        if self._failures is not None:
            await self._count(ADDRESS, address, int(time()) // SECONDS)

    async def _count(self, kind: str, name: str, minute: int) -> int:
        if self._shared is not None:
            count = await self._shared.add(f"{kind}/{name}", minute)
            if count is not None:
                return count
        return self._of[kind].add(name, minute)

    def _refused(self, name: str, quota: int, seconds: int) -> Exceeded:
        self.refusals[name] += 1
        return Exceeded(name, quota, seconds)

    async def _package(self, user_id: str, minute: int) -> int | None:
        """What the user's packages allow, asked for once a minute.

        Only who comes before anything is known waits, and with all others for the same answer.
        """
        known = self._packages.get(user_id)
        if known is not None and known[1] == minute:
            return known[0]
        task = self._asking.get(user_id)
        if task is None:
            last = known[0] if known is not None else None
            task = self._asking[user_id] = asyncio.create_task(self._ask_package(user_id, last, minute))
        return known[0] if known is not None else await asyncio.shield(task)

    async def _ask_package(self, user_id: str, last: int | None, minute: int) -> int | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                limit = await self._package_limit(user_id)
        except Exception as error:
            # A database that is away must not cost more than it does anyway: what was known last holds on.
            if not self._unknown:
                log.warning("what packages allow cannot be asked (%s): what was known last holds", type(error).__name__)
            self._unknown, limit = True, last
        else:
            self._unknown = False
        finally:
            del self._asking[user_id]
        if len(self._packages) >= MAX_PACKAGES and user_id not in self._packages:
            del self._packages[next(iter(self._packages))]
        self._packages[user_id] = limit, minute
        return limit

    async def close(self) -> None:
        """Gives back the connections."""
        for task in self._asking.values():
            task.cancel()
        if self._shared is not None:
            await self._shared.close()
