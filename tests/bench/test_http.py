"""The benches that start servers: verify, usage, revoke."""

import pytest
from rich.progress import Progress

from crafely.bench import BenchError, revoke, servers, usage, verify
from crafely.bench.place import Place
from crafely.bench.revoke import Denials
from crafely.bench.rounds import Plan
from crafely.config import Settings
from tests.bench.conftest import ROWS, decoded

ONCE = Plan(rounds=1, seconds=0.1)


def test_verify_measures_each_kind_of_key(
    place: Place, settings: Settings, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that some keys are still cold in the second measurement.
    monkeypatch.setattr(verify, "BURSTS", 2)
    report = verify.bench(place, settings, verify.Options(ROWS, ONCE), progress)
    assert decoded(report) == report
    assert all(side.rounds[0].count > 0 for side in report.sides)
    assert {"warm", "cache bypassed", "unknown", "revoked", "malformed", "bare", "warm, no rate limits"} < {
        s.name for s in report.sides
    }
    assert [bound.wanted for bound in report.bounds] == [0.80, 0.55, 0.95, 0.95, 0.90, 3.0]


@pytest.mark.parametrize(("url", "key"), [("http://127.0.0.1:1", None), ("https://a.example", "k"), ("here", "k")])
def test_somebody_elses_server_needs_an_address_and_a_key(url: str, key: str | None, progress: Progress) -> None:
    with pytest.raises(BenchError, match="--url takes http://host:port and goes with --key-file"):
        verify.bench_url(verify.Options(url=url, key=key), progress)


def test_usage_is_counted_again_in_the_database(place: Place, settings: Settings, progress: Progress) -> None:
    report = usage.bench(place, settings, usage.Options(ROWS, ONCE), progress)
    assert decoded(report) == report
    assert len(report.sides) == 6
    assert all(side.rounds[0].count > 0 for side in report.sides)
    stored = usage.Stored()
    stored.all = stored.summed = 1
    with pytest.raises(BenchError, match="acknowledged and summed: 1, 1; stored: "):
        usage._reconcile(place.database("usage"), stored)


def test_revoking_is_timed_in_every_worker(place: Place, settings: Settings, progress: Progress) -> None:
    report = revoke.bench(place, settings, revoke.Options(3, 100), progress)
    assert decoded(report) == report
    assert [(side.name, side.rounds[0].count) for side in report.sides] == [("by SQL", 3), ("by DELETE", 3)]
    with pytest.raises(BenchError, match="too few"):
        revoke.bench(place, settings, revoke.Options(100, 100), progress)


def test_a_valid_after_a_denial_is_a_violation() -> None:
    denials = Denials()
    denials.saw(1, True, asked=0)
    denials.saw(1, False, asked=0)
    # It was asked for before the denial came.
    denials.saw(1, True, asked=0)
    # Another worker has not heard of it yet.
    denials.saw(2, True, asked=float("inf"))
    assert (set(denials.first), denials.violations) == ({1}, 0)
    denials.saw(1, True, asked=float("inf"))
    assert denials.violations == 1


async def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(BenchError, match="did not start; it said: "):
        async with servers.crafely("postgresql:///nowhere?host=/nowhere"):
            pass
    with pytest.raises(BenchError, match="no setting CRAFELY_NONSENSE"):
        async with servers.crafely("", nonsense="1"):
            pass
