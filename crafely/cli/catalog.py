"""``crafely catalog``: every statement on one page: its text, its signature, who calls it, and which indexes it uses.

Without a database the page depends on the files alone, so that two releases can be compared. With one, each statement
has its plan there and, where pg_stat_statements counts, what it has cost.
"""

import argparse
import asyncio
from datetime import datetime
from typing import Any

import msgspec
import psycopg
from rich.console import Console
from rich.progress import track

from crafely import __version__
from crafely.cli import catalog_html, catalog_markdown, plan_tree
from crafely.cli.catalog_views import Catalog, Live, Planned
from crafely.cli.entries import entries
from crafely.cli.files import writable
from crafely.cli.place import add_place, place
from crafely.cli.target import Target, connected, require_schema
from crafely.config import Settings, load
from crafely.db import definitions, plans, query
from crafely.db.plans import Plan
from crafely.db.query import WrongRoleError
from crafely.db.session import DatabaseUnavailableError, connect
from crafely.store import monitor
from crafely.store.monitor import QueryStats

# More than there are files.
_MANY = 10_000


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser("catalog", help="every statement on one page", description=__doc__)
    parser.add_argument("--html", type=writable, metavar="FILE", help="write a page for browsers")
    parser.add_argument("--markdown", type=writable, metavar="FILE", help="write Markdown (default: print it)")
    parser.add_argument("--json", action="store_true", help="print it for programs")
    add_place(parser, optional=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page."""
    found = Catalog(__version__, entries())
    if arguments.database is not None or arguments.filled:
        settings = load(database_url=arguments.database or None)
        with place(settings, filled=arguments.filled) as where:
            live = _live(settings, where)
        if arguments.filled:
            live = msgspec.structs.replace(live, database="crafely check")
        found = msgspec.structs.replace(found, live=live)
    if arguments.html is not None:
        arguments.html.write_text(catalog_html.page(found), encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.write_text(catalog_markdown.page(found), encoding="utf-8")
    if arguments.json:
        print(msgspec.json.encode(found).decode())
    elif arguments.html is None and arguments.markdown is None:
        print(catalog_markdown.page(found), end="")
    return 0


def _live(settings: Settings, where: Target) -> Live:
    with connect(where.url, application_name="crafely catalog") as connection:
        require_schema(where)
        console = Console(stderr=True)
        names = track(
            sorted(query.statements), "planning", console=console, transient=True, disable=not console.is_terminal
        )
        planned = {name: _planned(connection, name) for name in names}
        server = connection.info.parameter_status("server_version") or ""
        found = Live(server, connection.info.dbname, planned, definitions.indexes(connection), {})
    try:
        since, figures = asyncio.run(_figures(settings, where.url))
    except (psycopg.Error, WrongRoleError, DatabaseUnavailableError):
        # The login may not look at statistics: the rest is worth a page.
        return found
    return msgspec.structs.replace(found, since=since, figures={one.statement: one for one in figures})


def _planned(connection: psycopg.Connection[Any], name: str) -> Planned:
    statement = query.statements[name]
    try:
        plan: Plan = plans.explain(connection, statement)
    except psycopg.Error as error:
        return Planned(refused=error.diag.message_primary or str(error))
    return Planned(tuple(plan_tree.lines(plan, statement.parameters)), plan.indexes, plan.scans)


async def _figures(settings: Settings, url: str) -> tuple[datetime | None, list[QueryStats]]:
    """Since when statements are counted, and what each has cost."""
    async with connected(settings, url, "crafely_monitor") as database:
        session = database.session("crafely_monitor")
        return (await monitor.statistics(session)).since, await monitor.queries(session, sort="total", take=_MANY)
