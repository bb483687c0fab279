"""Backups on a schedule: one of all processes runs ``crafely backup create --due`` when it is time."""

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress

from crafely.api.monitor_desk import BackupUse
from crafely.config import Settings
from crafely.db.backup import folder
from crafely.db.backup.folder import BackupError

log = logging.getLogger(__name__)

# Seconds after which one that failed is tried again: each attempt reads everything.
RETRY = 900.0
# Seconds that it has to clear away what it has begun, when this process ends.
GRACE = 10.0
# Requests come first.
_NICENESS = 10


class Backups:
    """Makes backups when they are due. One for each process; which of them makes one, a lock in the folder says."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._not_before = 0.0

    def use(self) -> BackupUse | None:
        """What the desk says of the newest backup; None where none are made here."""
        place = self._settings.backup_dir
        if place is None:
            return None
        newest, problem = None, None
        try:
            newest = folder.newest(place)
        except BackupError as error:
            problem = str(error)
        return BackupUse(
            hours=self._settings.backup_hours,
            problem=problem,
            started_at=newest.started_at if newest else None,
            bytes=newest.manifest.bytes if newest and newest.manifest else None,
        )

    async def make_due(self) -> None:
        """Makes one if the newest is too old, in a process of its own, and waits for it."""
        place, hours = self._settings.backup_dir, self._settings.backup_hours
        if place is None or time.monotonic() < self._not_before:
            return
        if not await asyncio.to_thread(folder.is_due, place, hours):
            return
        code, said = await in_background("backup", "create", "--due")
        if code:
            self._not_before = time.monotonic() + RETRY
            log.error("no backup was made: %s", said)
        elif said:
            log.info("backup made: %s", said)


async def in_background(*arguments: str) -> tuple[int, str]:
    """Runs a command of ours in a process of its own, after whatever else wants a processor, and waits for it.

    Gives its exit code and what it said: of an error, or else on its standard output. When this process ends, it does.
    """
    # A process, because its work is Python's, too: a thread would hold up every request.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "crafely", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        await _stop(process)
        raise
    code = process.returncode or 0
    return code, " ".join((err if code else out).decode(errors="replace").split())[-2000:]


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(GRACE):
                await process.wait()
        except TimeoutError:
            # What it leaves is not taken for a backup.
            process.kill()
            await process.wait()
