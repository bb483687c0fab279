"""``crafely bench capacity``: how many workers, replicas and shards a load needs."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from crafely.cli.files import writable
from crafely.config import Settings

if TYPE_CHECKING:
    # The lab is loaded by what measures, not by every other command.
    from rich.progress import Progress

    from crafely.bench.capacity import Options
    from crafely.bench.report import Report
    from crafely.bench.rounds import Plan

MAX_ROWS = 10_000_000
MAX_KEYS, MAX_RATE, MAX_BATCH, MAX_MONTHS, MAX_CORES = 1_000_000_000, 100_000_000, 1000, 1200, 1024
MAX_ZIPF = 3.0
LEAST_UTILIZATION, MOST_UTILIZATION = 0.1, 0.95


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    capacity = actions.add_parser(
        "capacity", help="workers, replicas and shards that a load needs, and what ends first"
    )
    keys = _whole(1, MAX_KEYS)
    rate = _part(0, MAX_RATE)
    capacity.add_argument("--keys", type=keys, default=1_000_000, metavar="N", help="keys there are (default: 1000000)")
    capacity.add_argument("--users", type=keys, metavar="N", help="whose they are (default: one for ten keys)")
    capacity.add_argument(
        "--lookups", type=rate, default=10_000.0, metavar="RATE", help="keys verified in a second (default: 10000)"
    )
    capacity.add_argument(
        "--events", type=rate, default=1000.0, metavar="RATE", help="usage recorded in a second (default: 1000)"
    )
    capacity.add_argument(
        "--event-batch", type=_whole(1, MAX_BATCH), default=1, metavar="N", help="records of a request (default: 1)"
    )
    capacity.add_argument(
        "--retention-months", type=_whole(1, MAX_MONTHS), default=3, metavar="N", help="usage is kept (default: 3)"
    )
    used = capacity.add_mutually_exclusive_group()
    used.add_argument(
        "--zipf",
        type=_part(0, MAX_ZIPF),
        default=1.07,
        metavar="S",
        help="how unequally keys are used; 0: all alike (default: 1.07)",
    )
    used.add_argument(
        "--hit-rate", type=_part(0, 1), metavar="PART", help="or, where it is known, the part answered from memory"
    )
    capacity.add_argument(
        "--cores", type=_whole(1, MAX_CORES), default=16, metavar="N", help="processors of a machine (default: 16)"
    )
    capacity.add_argument(
        "--utilization",
        type=_part(LEAST_UTILIZATION, MOST_UTILIZATION),
        default=0.6,
        metavar="PART",
        help="of them that are planned for (default: 0.6)",
    )
    capacity.add_argument(
        "--rows",
        type=_whole(100, MAX_ROWS),
        default=100_000,
        metavar="N",
        help="keys to measure with (default: 100000)",
    )
    capacity.add_argument(
        "--from",
        dest="measured",
        type=_report,
        metavar="FILE",
        help="measure nothing: take costs from an earlier --json",
    )
    capacity.add_argument("--svg", type=writable, metavar="FILE", help="write the picture alone")
    capacity.set_defaults(bench=measure, refuse=capacity.error)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def number(argument: str) -> int:
        if not argument.isdecimal() or not least <= int(argument) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}")
        return int(argument)

    return number


def _part(least: float, most: float) -> Callable[[str], float]:
    def number(argument: str) -> float:
        try:
            found = float(argument)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:.10g}")
        return found

    return number


def _report(argument: str) -> "Report":
    from crafely.bench.report import Report  # noqa: PLC0415 - the lab is loaded by what measures

    try:
        found = msgspec.json.decode(Path(argument).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        found = None
    if found is None or found.capacity is None:
        raise argparse.ArgumentTypeError("expected a file that bench capacity --json wrote")
    return found


def measure(arguments: argparse.Namespace, settings: Settings, progress: "Progress") -> "Report":
    """Measures, or takes what was measured before, and answers. Raises BenchError."""
    from crafely.bench import capacity  # noqa: PLC0415 - see above
    from crafely.bench.capacity_model import answered  # noqa: PLC0415
    from crafely.bench.place import place  # noqa: PLC0415
    from crafely.bench.rounds import Plan  # noqa: PLC0415

    options = _options(arguments, settings, Plan(arguments.rounds, arguments.seconds))
    if arguments.measured is not None:
        earlier = arguments.measured
        found = answered(options.load, earlier.capacity.costs, options.machine, earlier.capacity.points)
        return capacity.report(found, earlier)
    with place(settings, arguments.database) as where:
        return capacity.bench(where, settings, options, progress)


def _options(arguments: argparse.Namespace, settings: Settings, plan: "Plan") -> "Options":
    """What was said, with what a worker remembers of keys by its settings. Ends with 2 where it cannot be."""
    from crafely.bench.capacity import Options  # noqa: PLC0415 - see above
    from crafely.bench.capacity_terms import Load, Machine  # noqa: PLC0415

    if not arguments.lookups and not arguments.events:
        arguments.refuse("arguments --lookups, --events: expected one of them to be more than 0")
    users = max(1, arguments.keys // 10) if arguments.users is None else arguments.users
    if users > arguments.keys:
        arguments.refuse("argument --users: expected no more than --keys")
    load = Load(
        keys=arguments.keys,
        lookups=arguments.lookups,
        events=arguments.events,
        event_batch=arguments.event_batch,
        retention_months=arguments.retention_months,
        users=users,
        zipf=arguments.zipf,
        hit_rate=arguments.hit_rate,
    )
    machine = Machine(
        cores=arguments.cores,
        utilization=arguments.utilization,
        key_cache_size=settings.key_cache_size,
        key_cache_seconds=settings.key_cache_seconds,
    )
    return Options(load=load, machine=machine, rows=arguments.rows, plan=plan)
