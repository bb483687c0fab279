"""``crafely usage``: compare the daily sums with the records they are made of; export a month. Only reads."""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import pairwise

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crafely.cli import usage_export
from crafely.cli.tables import show
from crafely.cli.target import connected, require_schema, target
from crafely.config import Settings, load
from crafely.store import usage
from crafely.store.usage import Difference

# The most differences that are shown; where there are more, one of them says what is wrong.
MAX_SHOWN = 1000
# A month of records is read from end to end, and an administrator waits for it: no limit for requests fits.
STATEMENT_SECONDS = 6 * 3600
GROUP = ("day", "user_id", "provider", "model", "type", "currency")
MEASURES = ("records", "tokens_in", "tokens_out", "tokens_total", "cost")

# From a day (included) to a day (excluded); None: from the first, to the last.
Span = tuple[date | None, date | None]


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser(
        "usage", help="compare daily sums with the records; export a month", description=__doc__
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    reconcile = actions.add_parser(
        "reconcile", help="show where the daily sums are not what the records add up to; exit code 1 if anywhere"
    )
    reconcile.add_argument(
        "--from", dest="from_day", type=_day, metavar="DAY", help="the first UTC day, such as 2026-11-30 (default: all)"
    )
    reconcile.add_argument(
        "--to", dest="to_day", type=_day, metavar="DAY", help="the day after the last one (default: all)"
    )
    reconcile.add_argument("--user", metavar="ID", help="only this user's (default: everybody's)")
    reconcile.add_argument("--json", action="store_true", help="for programs")
    reconcile.set_defaults(run=run)
    usage_export.add(actions)


def _day(argument: str) -> date:
    try:
        return date.fromisoformat(argument)
    except ValueError:
        raise argparse.ArgumentTypeError("expected a day, such as 2026-11-30") from None


def run(arguments: argparse.Namespace) -> int:
    """Compares, and shows the differences; exit code 1 when there are any."""
    settings = load()
    if arguments.from_day and arguments.to_day and arguments.from_day >= arguments.to_day:
        print("crafely: --to: expected a later day than --from", file=sys.stderr)
        return 2
    with target(settings) as found:
        require_schema(found)
        differences = asyncio.run(
            _reconcile(settings, found.url, (arguments.from_day, arguments.to_day), arguments.user)
        )
    more = len(differences) > MAX_SHOWN
    if arguments.json:
        print(_encode(differences[:MAX_SHOWN]).decode())
    elif differences:
        show(_table(differences[:MAX_SHOWN]))
    if more:
        print(f"only the first {MAX_SHOWN} differences are shown", file=sys.stderr)
    elif not arguments.json:
        said = f"{len(differences)} groups differ" if differences else "the daily sums are what the records add up to"
        print(said, file=sys.stderr)
    return 1 if differences else 0


async def _reconcile(settings: Settings, url: str, wanted: Span, user_id: str | None) -> list[Difference]:
    """The differences in a range, at most one more than are shown."""
    differences: list[Difference] = []
    # It may read all users' rows, and write none.
    async with connected(settings, url, "crafely_backup", statement_timeout=STATEMENT_SECONDS) as database:
        session = database.session("crafely_backup")
        spans = list(_spans(wanted, await usage.months(session)))
        for from_day, to_day in _progress(spans):
            take = MAX_SHOWN + 1 - len(differences)
            differences += await usage.reconcile(session, from_day=from_day, to_day=to_day, user_id=user_id, take=take)
            if len(differences) > MAX_SHOWN:
                break
    return differences


def _spans(wanted: Span, months: Sequence[date]) -> Iterator[Span]:
    """Cuts a range at the months that have sums: records are partitioned by month, so each is read once.

    What the records have before and after those months is in the first and the last span, whose ends are open.
    """
    start, end = wanted
    cuts = [*months, (months[-1] + timedelta(days=32)).replace(day=1)] if months else []
    inside = [cut for cut in cuts if (start is None or start < cut) and (end is None or cut < end)]
    yield from pairwise([start, *inside, end])


def _progress(spans: Sequence[Span]) -> Iterator[Span]:
    """The spans, with a bar for people where there are several."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = len(spans) < 2 or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=len(spans))
        for span in spans:
            progress.update(task, description=f"from {span[0] or 'the first day'}")
            yield span
            progress.advance(task)


def _table(differences: Sequence[Difference]) -> Table:
    table = Table(
        *(name.replace("_", " ") for name in (*GROUP, *MEASURES)),
        box=box.SIMPLE_HEAD,
        caption="records ≠ daily sums; – where one side has nothing",
        caption_justify="left",
    )
    for difference in differences:
        table.add_row(
            *(escape(_text(getattr(difference, name))) for name in GROUP),
            *(_compared(difference, name) for name in MEASURES),
        )
    return table


def _compared(difference: Difference, measure: str) -> str:
    raw, daily = (getattr(difference, f"{side}_{measure}") for side in ("raw", "daily"))
    return _text(raw) if raw == daily else f"{_text(raw)} ≠ {_text(daily)}"


def _text(value: object) -> str:
    return "–" if value is None else str(value)


def _plain(value: object) -> str:
    return str(value)


# A Decimal of the database is a subclass that msgspec hands to the hook.
_encode = msgspec.json.Encoder(enc_hook=_plain).encode
