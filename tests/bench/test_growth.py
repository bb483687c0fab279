import pytest
from rich.progress import Progress

from crafely.bench import BenchError, growth
from crafely.bench.growth import Options
from crafely.bench.place import Place
from crafely.bench.rounds import Plan
from crafely.config import Settings
from tests.bench.conftest import QUICK, decoded


def test_costs_by_size(place: Place, settings: Settings, progress: Progress) -> None:
    report = growth.bench(place, settings, Options(2000, 1000, QUICK), progress)
    assert decoded(report) == report
    assert [(one.statement, one.rows) for one in report.growth] == [
        (name, rows) for name in (growth.LOOKUP, growth.STATS) for rows in (1000, 2000)
    ]
    lookups = [one for one in report.growth if one.statement == growth.LOOKUP]
    # The bucket of the index and the row; a bucket that is full has a second page.
    assert all(2 <= one.buffers < 3 for one in lookups)
    assert all(one.microseconds > 0 for one in report.growth)
    assert [bound.relation for bound in report.bounds] == ["<=", "<="]
    assert report.bounds[0].seen == pytest.approx(lookups[-1].buffers / lookups[0].buffers)


def test_sizes_grow_tenfold() -> None:
    assert Options().sizes == [10_000, 100_000, 1_000_000, 10_000_000]
    assert Options(largest=30_000).sizes == [10_000, 30_000]


def test_a_table_too_small_has_no_user(place: Place, settings: Settings, progress: Progress) -> None:
    with pytest.raises(BenchError, match="at least 1000 rows"):
        growth.bench(place, settings, Options(10, 10, Plan()), progress)
