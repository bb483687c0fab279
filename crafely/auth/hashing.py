"""Argon2id, off the event loop and within a limit.

Hashing is CPU and memory by design, so it runs on a few threads of its own. Threads are enough: argon2-cffi calls
argon2 through cffi, whose generated wrappers release the GIL around every C call (Py_BEGIN_ALLOW_THREADS in
cffi/recompiler.py). Who comes when the queue is full is told at once to come back, instead of waiting for a timeout.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar, TypeVarTuple

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, HashingError, VerifyMismatchError
from argon2.low_level import error_to_str

from crafely.config import Settings, SettingsError

log = logging.getLogger(__name__)

Args = TypeVarTuple("Args")
Result = TypeVar("Result")

# What argon2 says when the machine, not the input, is at fault: in argon2.h, ARGON2_MEMORY_ALLOCATION_ERROR (-22) and
# ARGON2_THREAD_FAIL (-33).
_TRANSIENT = {error_to_str(-22), error_to_str(-33)}


class Busy(Exception):  # noqa: N818 - a state that passes, not a failure
    """No capacity to hash now (queue full, or no memory). The caller may come back: HTTP 503 with Retry-After."""


class Verdict(NamedTuple):
    """Whether the secret fits, and whether its hash was made with other parameters than today's (only when it fits)."""

    ok: bool
    outdated: bool


class Hasher:
    """Hashes and verifies secrets on `argon2_threads` threads, with at most `argon2_queue` more waiting.

    Takes the settings' ``argon2_*``. Raises SettingsError when argon2 refuses the combination. Not bound to an event
    loop. Call `close` at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self._argon2 = PasswordHasher(
            time_cost=settings.argon2_time_cost,
            memory_cost=settings.argon2_memory_kib,
            parallelism=settings.argon2_parallelism,
        )
        try:
            # Verified in place of a hash that does not exist, so that an unknown key id takes as long as a known one.
            self._dummy = self._argon2.hash(secrets.token_bytes(32))
        except HashingError as error:
            raise SettingsError(
                f"CRAFELY_ARGON2_TIME_COST, _MEMORY_KIB, _PARALLELISM: argon2 refuses them: {error} "
                "(memory must be at least 8 KiB for each lane, and available)"
            ) from None
        self._pool = ThreadPoolExecutor(settings.argon2_threads, thread_name_prefix="argon2")
        self._slots = threading.BoundedSemaphore(settings.argon2_threads + settings.argon2_queue)
        # Secrets being hashed or waiting for it. Counted on the event loop's side, so it needs no lock.
        self.waiting = 0

    async def hash(self, secret: str) -> str:
        """The encoded argon2id hash of `secret`, salted (``$argon2id$v=19$m=8192,t=1,p=1$…``). Raises Busy."""
        return await self._run(self._hash, secret)

    async def verify(self, hashed: str | None, secret: str) -> Verdict:
        """Whether `secret` is the one that `hashed` was made of.

        None stands for a key that does not exist: as much work, and the answer is no. A stored hash that is not an
        argon2 hash is logged as an error and fits nothing. Raises Busy.
        """
        return await self._run(self._verify, hashed, secret)

    def close(self) -> None:
        """Finish the hashes that run, cancel those that wait, end the threads."""
        self._pool.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[[*Args], Result], *args: *Args) -> Result:
        if not self._slots.acquire(blocking=False):
            raise Busy("too many keys are being hashed")
        try:
            future = self._pool.submit(work, *args)
        except RuntimeError:  # closed, or the system gives no more threads
            self._slots.release()
            raise
        # On the future, not around the await: a waiter that goes away while its hash runs keeps the slot until the
        # thread is free; one that goes away while queued gives it back at once. Either way exactly once.
        future.add_done_callback(lambda _: self._slots.release())
        self.waiting += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            self.waiting -= 1

    def _hash(self, secret: str) -> str:
        try:
            return self._argon2.hash(secret)
        except HashingError as error:  # the parameters passed at start-up, so it is the machine
            raise Busy(f"argon2: {error}") from error

    def _verify(self, hashed: str | None, secret: str) -> Verdict:
        try:
            self._argon2.verify(self._dummy if hashed is None else hashed, secret)
        except VerifyMismatchError:
            return Verdict(ok=False, outdated=False)
        except (Argon2Error, ValueError) as error:
            if str(error) in _TRANSIENT:
                raise Busy(f"argon2: {error}") from error
            # Only the kind of error: some of their texts quote the hash.
            log.error("a stored key hash is not an argon2 hash: %s", type(error).__name__)  # noqa: TRY400 - see above
            return Verdict(ok=False, outdated=False)
        if hashed is None:
            return Verdict(ok=False, outdated=False)
        return Verdict(ok=True, outdated=self._argon2.check_needs_rehash(hashed))
