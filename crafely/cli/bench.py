"""``crafely bench``: how fast it is on this machine, next to what one would compare it with."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crafely.cli import bench_capacity
from crafely.cli.files import writable
from crafely.cli.tables import show
from crafely.cli.target import database_url
from crafely.config import Settings, load

if TYPE_CHECKING:
    # The lab is loaded by what measures, not by every other command.
    from rich.progress import Progress

    from crafely.bench.place import Place
    from crafely.bench.report import Report
    from crafely.bench.rounds import Plan

Bench = Callable[[argparse.Namespace, Settings, "Progress"], "Report"]
MAX_SECONDS = 600
MAX_COUNT = 100_000_000


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser("bench", help="measure it on this machine", description=__doc__)
    actions = parser.add_subparsers(title="benches", metavar="BENCH", required=True)

    lookup = actions.add_parser("lookup", help="keys found in a second by the data layer, next to pgbench")
    lookup.add_argument("--rows", type=_count, default=1_000_000, metavar="N", help="keys to find (default: 1000000)")
    lookup.add_argument("--keys", choices=("uniform", "zipf", "both"), default="both", help="which are asked for")
    lookup.set_defaults(bench=_lookup)

    verify = actions.add_parser("verify", help="keys verified in a second over HTTP, next to bare aiohttp")
    verify.add_argument("--rows", type=_count, default=1_000_000, metavar="N", help="keys there are (default: 1000000)")
    verify.add_argument("--url", metavar="URL", help="somebody else's server, http://host:port; goes with --key-file")
    verify.add_argument(
        "--key-file",
        type=_key,
        metavar="FILE",
        help="where a key stands that may verify keys, for --url; - is standard input (an argument could be read by "
        "every user of the machine)",
    )
    verify.set_defaults(bench=_verify)

    usage = actions.add_parser("usage", help="usage recorded in a second over HTTP, next to a plain insert")
    usage.add_argument("--rows", type=_count, default=10_000, metavar="N", help="keys there are (default: 10000)")
    usage.set_defaults(bench=_usage)

    revoke = actions.add_parser("revoke", help="milliseconds from revoking a key to the last worker's denial")
    revoke.add_argument("--rows", type=_count, default=10_000, metavar="N", help="keys there are (default: 10000)")
    revoke.add_argument("--revocations", type=_count, default=200, metavar="N", help="of either kind (default: 200)")
    revoke.set_defaults(bench=_revoke)

    growth = actions.add_parser("growth", help="what a lookup and a user's sums cost with more and more rows")
    growth.add_argument("--max", type=_count, default=10_000_000, metavar="N", help="rows at most (default: 10000000)")
    growth.add_argument("--svg", type=writable, metavar="FILE", help="write the picture alone")
    growth.set_defaults(bench=_growth)

    scale = actions.add_parser("scale", help="what a user's sums cost in a small and in a large table of usage")
    scale.add_argument("--rows", type=_count, default=50_000_000, metavar="N", help="of the large (default: 50000000)")
    scale.set_defaults(bench=_scale)

    bench_capacity.add(actions)

    for action in actions.choices.values():
        _common(action, rounds=3 if action.get_default("bench") is bench_capacity.measure else 5)


def _common(action: argparse.ArgumentParser, rounds: int) -> None:
    words = f"measurements of a side (default: {rounds})"
    action.add_argument("--rounds", type=_count, default=rounds, metavar="N", help=words)
    action.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help="of each of them (default: 2)")
    action.add_argument(
        "--database",
        type=database_url,
        metavar="URL",
        help="a server to work on, as a superuser, in databases called crafely_bench_… that are made there "
        "(default: an embedded one of the bench's own)",
    )
    action.add_argument("--json", type=writable, metavar="FILE", help="write the figures for programs")
    action.add_argument("--html", type=writable, metavar="FILE", help="write a page with pictures")
    action.add_argument("--check", action="store_true", help="exit with 1 unless what is promised holds")
    action.set_defaults(run=run)


def _count(argument: str) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MAX_COUNT}")
    return int(argument)


def _key(argument: str) -> str:
    try:
        text = sys.stdin.readline() if argument == "-" else Path(argument).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise argparse.ArgumentTypeError("expected a file with a key in it, or - for standard input") from None
    return text.strip()


def _seconds(argument: str) -> float:
    try:
        seconds = float(argument)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"expected seconds, up to {MAX_SECONDS}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Measures, and says what came of it. Exit code 1 when it failed, or --check found a promise that does not hold."""
    import msgspec  # noqa: PLC0415 - see above
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from crafely.bench import BenchError, capacity_picture, page, report, svg  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            found = arguments.bench(arguments, load(), progress)
    except BenchError as error:
        print(f"crafely: {error}", file=sys.stderr)
        return 1
    for table in report.tables(found):
        show(table)
    for note in found.notes:
        print(note)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if arguments.html is not None:
        arguments.html.write_text(page.html(found), encoding="utf-8")
    if getattr(arguments, "svg", None) is not None:
        picture = capacity_picture.picture(found.capacity) if found.capacity else svg.growth(found.growth)
        arguments.svg.write_text(svg.file(picture), encoding="utf-8")
    if not arguments.check:
        return 0
    show(report.bounds_table(found))
    return 0 if all(bound.holds for bound in found.bounds) else 1


def _plan(arguments: argparse.Namespace) -> "Plan":
    from crafely.bench.rounds import Plan  # noqa: PLC0415 - see above

    return Plan(arguments.rounds, arguments.seconds)


def _lookup(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    from crafely.bench import lookup  # noqa: PLC0415 - see above

    distributions = ("uniform", "zipf") if arguments.keys == "both" else (arguments.keys,)
    options = lookup.Options(arguments.rows, _plan(arguments), distributions)
    return _at(arguments, settings, lambda place: lookup.bench(place, settings, options, progress))


def _verify(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    from crafely.bench import verify  # noqa: PLC0415 - see above

    options = verify.Options(arguments.rows, _plan(arguments), arguments.url, arguments.key_file)
    if options.url is not None:
        return verify.bench_url(options, progress)
    return _at(arguments, settings, lambda place: verify.bench(place, settings, options, progress))


def _usage(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    from crafely.bench import usage  # noqa: PLC0415 - see above

    options = usage.Options(arguments.rows, _plan(arguments))
    return _at(arguments, settings, lambda place: usage.bench(place, settings, options, progress))


def _revoke(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    from crafely.bench import revoke  # noqa: PLC0415 - see above

    options = revoke.Options(arguments.revocations, arguments.rows)
    return _at(arguments, settings, lambda place: revoke.bench(place, settings, options, progress))


def _growth(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    from crafely.bench import growth  # noqa: PLC0415 - see above

    options = growth.Options(arguments.max, min(growth.SMALLEST, arguments.max), _plan(arguments))
    return _at(arguments, settings, lambda place: growth.bench(place, settings, options, progress))


def _scale(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    from crafely.bench import scale  # noqa: PLC0415 - see above

    options = scale.Options(arguments.rows, plan=_plan(arguments))
    return _at(arguments, settings, lambda place: scale.bench(place, settings, options, progress))


def _at(arguments: argparse.Namespace, settings: Settings, measure: "Callable[[Place], Report]") -> "Report":
    """Measures on the server that the command line names, or on the bench's own."""
    from crafely.bench.place import place  # noqa: PLC0415 - see above

    with place(settings, arguments.database) as where:
        return measure(where)
