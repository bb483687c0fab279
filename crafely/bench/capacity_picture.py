"""The picture of ``crafely bench capacity``: busy processors by load, and where each thing ends."""

import msgspec

from crafely.bench import svg
from crafely.bench.capacity_model import demand, limits
from crafely.bench.capacity_terms import Capacity, Load

# Loads that a line of the picture is drawn through, to each power of ten.
_STEPS = 8
_POWERS = range(3, 7)


def picture(found: Capacity) -> str:
    """Of lookups alone, and of events alone."""
    change = msgspec.structs.replace
    batch = found.load.event_batch
    kinds = [
        ("lookups", change(found.load, lookups=1.0, events=0.0)),
        ("events" if batch == 1 else f"events in batches of {batch:,}", change(found.load, lookups=0.0, events=1.0)),
    ]
    rates = [10 ** (power + step / _STEPS) for power in _POWERS[:-1] for step in range(_STEPS)] + [10.0 ** _POWERS[-1]]
    lines: list[svg.Line] = []
    marks = []
    for name, one in kinds:

        def busy(rate: float, one: Load = one) -> tuple[float, float]:
            at = change(one, lookups=one.lookups * rate, events=one.events * rate)
            need = demand(at, found.costs, found.machine)
            return need.worker_cores, need.server_cores

        lines.append((f"{name}: workers", [(rate, busy(rate)[0]) for rate in rates]))
        lines.append((f"{name}: PostgreSQL", [(rate, busy(rate)[1]) for rate in rates]))
        for limit in limits(one, found.costs, found.machine):
            if rates[0] <= limit.factor <= rates[-1]:
                workers, server = busy(limit.factor)
                words = f"{limit.what}: {limit.factor:,.0f} {name}/s"
                marks.append((limit.factor, workers if limit.of_workers else server, words))
    return svg.loads(lines, marks)
