"""Sides, what they give, and who is measured when."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    # The load client is to begin at once, and shows nothing.
    from rich.progress import Progress


class Sample(msgspec.Struct, frozen=True):
    """One measurement of one side."""

    # What was done and answered rightly: lookups, requests, events.
    count: int
    seconds: float
    # How long some or all of them took, in seconds, in no order.
    latencies: list[float]

    @property
    def rate(self) -> float:
        """How many were done in a second."""
        return self.count / self.seconds if self.seconds else 0.0


Measure = Callable[[float], Awaitable[Sample]]


class Side(msgspec.Struct, frozen=True):
    """One of those that are compared: works for about so many seconds, and says what came of it."""

    name: str
    measure: Measure
    # Those of one group are drawn in one picture.
    group: str = ""
    # What is counted.
    unit: str = "requests/s"
    # Those of one family have one colour, from pale to strong.
    family: str = ""


class Plan(msgspec.Struct, frozen=True):
    """How long and how often."""

    rounds: int = 5
    # Of one measurement.
    seconds: float = 2.0


class Measured(msgspec.Struct, frozen=True):
    """A side and its samples, one for each round."""

    side: Side
    samples: list[Sample]


# Before the first round each side works for a part of a measurement, and nobody counts it: connections are made,
# statements prepared, pages read.
WARM_UP = 0.25


async def interleave(sides: Sequence[Side], plan: Plan, progress: "Progress") -> list[Measured]:
    """Measures each side once a round, in their order, so that what else goes on here meets all of them."""
    samples: list[list[Sample]] = [[] for _ in sides]
    task = progress.add_task("warming up", total=len(sides) * (plan.rounds + 1))
    for side in sides:
        progress.update(task, description=f"warming up: {side.name}")
        await side.measure(plan.seconds * WARM_UP)
        progress.advance(task)
    for number in range(1, plan.rounds + 1):
        for side, mine in zip(sides, samples, strict=True):
            progress.update(task, description=f"round {number} of {plan.rounds}: {side.name}")
            mine.append(await side.measure(plan.seconds))
            progress.advance(task)
    progress.remove_task(task)
    return [Measured(side, mine) for side, mine in zip(sides, samples, strict=True)]
