"""``crafely migrate``: the schema, forwards and back."""

import argparse
import sys
from collections.abc import Callable

import msgspec
from rich.table import Table

from crafely.cli.tables import show
from crafely.cli.target import Target, near, target
from crafely.config import load
from crafely.db import migrate

_STYLES = {"applied": "green", "pending": "yellow", "edited": "red", "missing": "red"}


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser("migrate", help="the schema, forwards and back", description=__doc__)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    up = actions.add_parser("up", help="apply what is pending")
    up.add_argument("--to", metavar="ID", help="only up to this one")
    up.set_defaults(run=_on(_up))

    down = actions.add_parser("down", help="roll back the newest one")
    down.add_argument("--steps", type=int, default=1, help="how many (default: 1)")
    down.add_argument("--all", action="store_true", help="all of them: nothing is left")
    down.set_defaults(run=_on(_down))

    status = actions.add_parser("status", help="what is applied and what is not; only reads; exit code 1 unless all is")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_on(_status))

    new = actions.add_parser("new", help="start a migration: both files, to be filled in")
    new.add_argument("name", metavar="NAME", help="its topic, such as agents-archive")
    new.set_defaults(run=_new)

    reset = actions.add_parser("reset", help="roll everything back and apply it again: ALL DATA IS LOST")
    reset.add_argument("--force", metavar="NAME", help="the database's name, where it is not the embedded one")
    reset.set_defaults(run=_on(_reset))


def _on(work: Callable[[Target, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        with target(load()) as found:
            return work(found, arguments)

    return run


def _up(found: Target, arguments: argparse.Namespace) -> int:
    done = migrate.up(found.url, on_progress=_say, to=arguments.to)
    _say(f"{len(done)} applied" if done else "nothing to do")
    return 0


def _down(found: Target, arguments: argparse.Namespace) -> int:
    done = migrate.down(found.url, steps=None if arguments.all else arguments.steps, on_progress=_say)
    _say(f"{len(done)} rolled back" if done else "nothing to do")
    return 0


def _status(found: Target, arguments: argparse.Namespace) -> int:
    history = migrate.status(found.url)
    if arguments.json:
        print(msgspec.json.encode(history).decode())
    else:
        table = Table("migration", "state", "applied at (UTC)", "checksum")
        for one in history:
            applied = one.applied_at.strftime("%Y-%m-%d %H:%M:%S") if one.applied_at else ""
            table.add_row(one.id, f"[{_STYLES[one.state]}]{one.state}[/]", applied, one.checksum[:12])
        show(table)
    # A script can ask: 0 means that the database is what the files say.
    return 0 if all(one.state == "applied" for one in history) else 1


def _new(arguments: argparse.Namespace) -> int:
    for path in migrate.new(arguments.name):
        print(near(path))
    return 0


def _reset(found: Target, arguments: argparse.Namespace) -> int:
    migrate.reset(found.url, embedded=found.embedded, force=arguments.force, on_progress=_say)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
