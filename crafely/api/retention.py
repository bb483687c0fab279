"""Months of usage past CRAFELY_USAGE_MONTHS: written to a file, where that is wanted, then dropped; their sums stay."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path

from crafely.api.backups import in_background
from crafely.config import Settings
from crafely.db.backup.folder import BackupError, BusyError, turn
from crafely.db.session import Session
from crafely.store import usage

log = logging.getLogger(__name__)

# A drop gives up rather than wait for others, who may be done soon. Then it is a matter of the next run.
ATTEMPTS = 10
PAUSE = 1.0


class Retention:
    """Drops months. One for each process; several at once are harmless."""

    def __init__(
        self, settings: Settings, session: Callable[[], Session], drop: Callable[[date], Awaitable[bool | None]]
    ) -> None:
        """Takes what gives a session of crafely_admin, and what drops a month: None, while others hold it up."""
        self._months = settings.usage_months
        self._place = settings.usage_export_dir
        self._session = session
        self._drop_month = drop

    async def drop_usage(self) -> None:
        """Drops every month that is past its time, oldest first; where it is to be written first, only then."""
        if self._months is None:
            return
        try:
            while (month := await usage.expired_month(self._session(), months_kept=self._months)) is not None:
                if self._place is None:
                    done = await self._drop(month)
                else:
                    # One at a time writes there. It takes as long as it takes; nobody waits for it.
                    with turn(self._place):
                        done = await self._export(month, self._place) and await self._drop(month)
                if not done:
                    return
        except BusyError:
            log.info("another process is writing a month of usage")
        except BackupError as error:
            # A folder that cannot be written, in one line: where it comes from says nothing.
            log.error("no month of usage was dropped: %s", error)  # noqa: TRY400

    async def _export(self, month: date, place: Path) -> bool:
        path = place / f"usage-{month:%Y-%m}.csv.gz"
        code, said = await in_background(
            "usage", "export", "--month", f"{month:%Y-%m}", "--output", str(path), "--json"
        )
        if code:
            log.error("month of usage not written, and so not dropped: %s", said)
        else:
            log.info("month of usage written: %s", said)
        return code == 0

    async def _drop(self, month: date) -> bool:
        for _ in range(ATTEMPTS):
            dropped = await self._drop_month(month)
            if dropped is None:
                await asyncio.sleep(PAUSE)
                continue
            if dropped:
                log.info("month of usage dropped: %s", f"{month:%Y-%m}")
            return dropped
        log.warning("month of usage not dropped yet, since others were at work on usage: %s", f"{month:%Y-%m}")
        return False
