"""Lookups, and what they are compared with."""

import asyncio
from collections import Counter

import pytest
from rich.progress import Progress

from crafely.bench import BenchError, lookup, pgbench
from crafely.bench.lookup import Options
from crafely.bench.place import Place
from crafely.bench.seed import key_id, seed
from crafely.config import Settings
from crafely.store.api_keys import KeyRecord
from tests.bench.conftest import QUICK, ROWS, decoded


def record(key: str) -> KeyRecord:
    return KeyRecord("key_1", key, "hash", "user_1", [], True, None, None)


def test_all_sides_of_the_comparison(
    place: Place, settings: Settings, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "CALLERS", (1, 8, 64, 256))
    monkeypatch.setattr(lookup, "CLIENTS", (1,))
    monkeypatch.setattr(lookup, "FEW_CALLERS", (8,))
    report = lookup.bench(place, settings, Options(ROWS, QUICK, ("zipf",)), progress)
    assert decoded(report) == report
    for side in report.sides:
        assert len(side.rounds) == QUICK.rounds
        assert all(one.count > 0 and one.rate == pytest.approx(one.count / one.seconds) for one in side.rounds)
        assert side.latency is not None
    assert report.facts.rows == {"api_keys": ROWS}
    if place.pgbench is not None:
        names = ["256 callers", "64 callers", "8 callers", "1 caller"]
        assert [ratio.name.partition(": ")[2].partition(" /")[0] for ratio in report.ratios] == names
        assert [bound.wanted for bound in report.bounds] == [2.5, 2.0, 0.6, 0.5]
        assert [bound.seen for bound in report.bounds] == [ratio.median for ratio in report.ratios]


async def test_callers_each_await_one_key_after_the_other() -> None:
    waiting = most = asked = 0

    async def ask(key: str) -> KeyRecord:
        nonlocal waiting, most, asked
        waiting, asked = waiting + 1, asked + 1
        most = max(most, waiting)
        await asyncio.sleep(0)
        waiting -= 1
        return record(key)

    sample = await lookup.callers(ask, ["a", "b", "c"], 5, 0.05)
    assert sample.count == asked
    assert most == 5
    assert 0 < len(sample.latencies) <= asked


@pytest.mark.parametrize("wrong", [None, record("b")])
async def test_a_wrong_answer_ends_it(wrong: KeyRecord | None) -> None:
    answers = iter(range(10**6))

    async def ask(key: str) -> KeyRecord | None:
        await asyncio.sleep(0)
        return wrong if next(answers) == 25 else record(key)

    with pytest.raises(BenchError, match="asked for key a"):
        await lookup.callers(ask, ["a"], 4, 5.0)
    assert len(asyncio.all_tasks()) == 1, "nobody goes on asking"


def test_keys_are_drawn_from_all_there_are() -> None:
    uniform, zipf = (lookup.draw(100, kind) for kind in ("uniform", "zipf"))
    every = {key_id(number) for number in range(1, 101)}
    assert set(uniform) == set(zipf) == every
    (first, most), (_, second) = Counter(zipf).most_common(2)
    assert first == key_id(1 + pgbench.SCATTER % 100)
    assert most / second == pytest.approx(2**lookup.ZIPF, rel=0.05)
    assert max(Counter(uniform).values()) < 2 * len(uniform) / 100


def test_pgbench_asks_with_the_statement_of_the_program() -> None:
    script = pgbench.script(1000, None)
    assert script.startswith("\\set n random(1, 1000)\n\\set key_id 1000000000000000 + :n * ")
    assert "\nselect id, key_id, hashed_key," in script
    assert script.endswith("where key_id = :key_id;\n")
    assert "random_zipfian(1, 1000, 1.07)" in pgbench.script(1000, 1.07)


async def test_a_pgbench_that_fails_ends_it(place: Place) -> None:
    if place.pgbench is None:
        pytest.skip("there is no pgbench here")
    with pytest.raises(BenchError, match="pgbench failed"):
        await pgbench.measure(place.pgbench, place.url, "select 1 / 0;\n", 1, 0.1)


async def test_pgbench_computes_the_keys_that_there_are(place: Place, settings: Settings, progress: Progress) -> None:
    if place.pgbench is None:
        pytest.skip("there is no pgbench here")
    url = place.database("found")
    await asyncio.to_thread(seed, url, settings, progress, keys=50)
    # Dividing by the rows found fails where there is none.
    select, _, rest = pgbench.script(50, lookup.ZIPF).partition("select ")
    counting = f"{select}select 1 / count(*) from (select {rest.rstrip().rstrip(';')}) as found;\n"  # noqa: S608 - ours
    sample = await pgbench.measure(place.pgbench, url, counting, 1, 0.1)
    assert sample.count > 0
