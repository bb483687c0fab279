"""``crafely monitor``: the DBA's desk. What costs, waits, grows and needs somebody, every two seconds, or once."""

import argparse
import asyncio
import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from crafely.cli.target import connected, require_schema, target
from crafely.config import Settings, load
from crafely.db.session import Database

if TYPE_CHECKING:
    # Loading the API takes longer than any other command's whole start.
    from crafely.api.monitor_desk import Desk

# Seconds between two looks. What changes slowly is looked at in every fifteenth of them.
REFRESH = 2.0
SLOWLY = 15
STATEMENT_SECONDS = 30
# It sees statistics, and no tenant's data.
ROLE = "crafely_monitor"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "monitor",
        help="what the database says of itself",
        description=f"{__doc__} On a terminal it goes on until q or Ctrl-C; else, and with --once or --json, it looks "
        "once, and the exit code is 1 where something needs somebody.",
    )
    parser.add_argument("--once", action="store_true", help="look once")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Shows the desk. Exit code 1 where something needs somebody, when it looked once."""
    settings = load()
    once = arguments.once or arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty())
    with target(settings) as found:
        require_schema(found)
        if once:
            return asyncio.run(_once(settings, found.url, as_json=arguments.json))
        try:
            asyncio.run(_live(settings, found.url))
        except KeyboardInterrupt:
            # To be stopped is how it ends.
            return 0
    return 0


async def _once(settings: Settings, url: str, *, as_json: bool) -> int:
    from rich.console import Console  # noqa: PLC0415 - loaded by who looks

    from crafely.api import monitor_alerts, monitor_desk  # noqa: PLC0415
    from crafely.api.backups import Backups  # noqa: PLC0415
    from crafely.cli import monitor_page, tables  # noqa: PLC0415

    async with connected(settings, url, ROLE, statement_timeout=STATEMENT_SECONDS) as database:
        db = database.session(ROLE)
        desk = await monitor_desk.look(db, room=monitor_desk.room_of(settings), backup=Backups(settings).use())
    alerts = monitor_alerts.alerts(desk)
    if as_json:
        print(msgspec.json.encode({"alerts": alerts, **msgspec.structs.asdict(desk)}).decode())
    else:
        console = Console(width=None if sys.stdout.isatty() else tables.PIPE_WIDTH)
        console.print(monitor_page.page(desk, alerts))
    return 1 if alerts else 0


async def _live(settings: Settings, url: str) -> None:
    from rich.live import Live  # noqa: PLC0415 - loaded by who looks

    from crafely.api import monitor_alerts  # noqa: PLC0415
    from crafely.cli import monitor_page  # noqa: PLC0415

    stop = asyncio.Event()
    async with connected(settings, url, ROLE, statement_timeout=STATEMENT_SECONDS) as database:
        # No thread of rich's own draws: a page is as wide and high as the terminal is when it is drawn.
        with Live(screen=True, auto_refresh=False) as live, _keys(stop):
            desk, number = None, 0
            while not stop.is_set():
                note = f"every {REFRESH:g} s · q ends"
                try:
                    desk = await _look(settings, database, desk, slowly=number % SLOWLY == 0)
                    number += 1
                except (OSError, RuntimeError) as error:
                    note = f"{' '.join(str(error).split())} · tries again · q ends"
                alerts = monitor_alerts.alerts(desk) if desk is not None else []
                live.update(monitor_page.screen(desk, alerts, note), refresh=True)
                await _pause(stop)


async def _look(settings: Settings, database: Database, last: "Desk | None", *, slowly: bool) -> "Desk":
    """A desk with everything, or with what changes slowly as it was. Raises OSError or RuntimeError with a line."""
    import psycopg  # noqa: PLC0415 - loaded by who looks

    from crafely.api import monitor_desk  # noqa: PLC0415
    from crafely.api.backups import Backups  # noqa: PLC0415

    db = database.session(ROLE)
    try:
        if last is None or slowly:
            return await monitor_desk.look(db, room=monitor_desk.room_of(settings), backup=Backups(settings).use())
        return await monitor_desk.look_again(db, last)
    except psycopg.Error as error:
        raise RuntimeError(str(error) or type(error).__name__) from None


async def _pause(stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), REFRESH)
    except TimeoutError:
        return


@contextmanager
def _keys(stop: asyncio.Event) -> Iterator[None]:
    """Reads keys as they are typed, unseen; q, or the end of the input, sets the event. The terminal is put back."""
    loop, file = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def typed() -> None:
        keys = os.read(file, 64)
        if not keys or b"q" in keys.lower():
            stop.set()

    try:
        # Not raw: Ctrl-C stays what it is.
        tty.setcbreak(file)
        loop.add_reader(file, typed)
        yield
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)
