"""``crafely migrate``: the schema, forwards and back."""

import argparse
import sys
from collections.abc import Callable

from crafely.cli import migrate_checks
from crafely.cli.target import Target, near, target
from crafely.config import load
from crafely.db import migrate


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

    status = actions.add_parser(
        "status",
        help="what is applied, and what is not as migrations make it; only reads; exit code 1 unless all is well",
    )
    status.add_argument("--history", action="store_true", help="only what is applied, without looking at the objects")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_on(migrate_checks.status))

    verify = actions.add_parser("verify", help="try each one up, down and up, under traffic, on a server made for it")
    verify.add_argument("id", nargs="?", metavar="ID", help="this one alone, such as 0003.api-keys (default: all)")
    verify.add_argument("--json", action="store_true", help="for programs")
    verify.set_defaults(run=migrate_checks.verify)

    lint = actions.add_parser(
        "lint", help="what the files may not say, take away or leave out, with squawk's rules and ours"
    )
    lint.add_argument("--json", action="store_true", help="for programs")
    lint.set_defaults(run=migrate_checks.lint)

    schema = actions.add_parser("schema", help="print what the migrations make, as sql/schema.sql has it")
    schema.set_defaults(run=migrate_checks.schema)

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


def _new(arguments: argparse.Namespace) -> int:
    for path in migrate.new(arguments.name):
        print(near(path))
    return 0


def _reset(found: Target, arguments: argparse.Namespace) -> int:
    migrate.reset(found.url, embedded=found.embedded, force=arguments.force, on_progress=_say)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)
