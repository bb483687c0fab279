from rich.progress import Progress

from crafely.bench.rounds import WARM_UP, Plan, Sample, Side, interleave


async def test_sides_take_turns_and_the_first_turn_counts_for_nothing(progress: Progress) -> None:
    calls: list[tuple[str, float]] = []

    def side(name: str) -> Side:
        async def measure(seconds: float) -> Sample:
            calls.append((name, seconds))
            return Sample(len(calls), 1.0, [])

        return Side(name, measure)

    measured = await interleave([side("a"), side("b")], Plan(rounds=3, seconds=2.0), progress)
    assert calls[:2] == [("a", 2 * WARM_UP), ("b", 2 * WARM_UP)]
    assert calls[2:] == [("a", 2.0), ("b", 2.0)] * 3
    assert [[sample.count for sample in one.samples] for one in measured] == [[3, 5, 7], [4, 6, 8]]


def test_a_sample_of_no_time_has_no_rate() -> None:
    assert Sample(0, 0.0, []).rate == 0
    assert Sample(10, 2.0, []).rate == 5
