"""What a serving process does by itself: small statements, each harmless when several workers run it at once."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from crafely.api.services import Services

log = logging.getLogger(__name__)

# Seconds between two runs of each.
TOUCHES = 5.0
METRICS = 5.0
SUBSCRIPTIONS = 60.0
PARTITIONS = 24 * 3600.0
RETENTION = 600.0
IDEMPOTENCY_KEYS = 600.0
SAMPLES = 300.0
KEYS = 60.0
SEALS = 60.0
DESK = 30.0
BACKUPS = 60.0


@asynccontextmanager
async def running(services: Services) -> AsyncIterator[None]:
    """Runs all housekeeping in the background, each job at its interval; most begin at once."""
    jobs: list[tuple[Callable[[], Awaitable[None]], float]] = [
        (services.flush_touches, TOUCHES),
        (services.observe, METRICS),
        (services.expire_subscriptions, SUBSCRIPTIONS),
        (services.keep_usage, PARTITIONS),
        (services.retention.drop_usage, RETENTION),
        (services.forget_idempotency_keys, IDEMPOTENCY_KEYS),
        (services.sample_storage, SAMPLES),
        (services.check_keys, KEYS),
        (services.seal_audit_log, SEALS),
    ]
    tasks = [asyncio.create_task(_repeat(job, seconds), name=job.__name__) for job, seconds in jobs]
    # It takes a connection more: who only starts and stops need not wait for it.
    tasks.append(asyncio.create_task(_repeat(services.observe_database, DESK, after=DESK), name="observe_database"))
    tasks.append(asyncio.create_task(_repeat(services.backups.make_due, BACKUPS, after=BACKUPS), name="make_due"))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(job: Callable[[], Awaitable[None]], seconds: float, *, after: float = 0) -> None:
    await asyncio.sleep(after)
    while True:
        pause = seconds
        try:
            await job()
        except Exception:
            if not _cancelled():
                # The next run may find the database again; until then serving matters more.
                log.exception("housekeeping failed: %s", job.__name__)
                pause = min(seconds, SUBSCRIPTIONS)
        # psycopg answers a cancellation with the statement's end or its error: without this it would be lost.
        if _cancelled():
            return
        await asyncio.sleep(pause)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
