from datetime import UTC, datetime

import psycopg
import pytest
from rich.progress import Progress

from crafely.bench import BenchError, scale
from crafely.bench.place import Place
from crafely.bench.rounds import Plan
from crafely.bench.scale import Options
from crafely.config import Settings
from crafely.db.scratch import beside
from tests.bench.conftest import decoded

SMALL = Options(largest=12_000, smallest=4_000, plan=Plan(rounds=1, seconds=0.02), heavy=400, ordinary=200)


def test_the_measured_users_have_the_same_records_in_both_sizes(
    place: Place, settings: Settings, progress: Progress
) -> None:
    report = scale.bench(place, settings, SMALL, progress)
    assert decoded(report) == report
    assert [one.rows for one in report.growth] == [4_000, 12_000] * 6
    assert all(one.buffers > 0 and one.microseconds > 0 for one in report.growth)
    assert len(report.bounds) == 7
    assert report.bounds[-1].seen > 0
    small, large = (beside(place.url, f"{place.prefix}_scale_{rows}") for rows in (4_000, 12_000))
    # The large one has a month less by then.
    own = (
        "select user_id, created_at, provider, tokens_in, cost from usage where user_id in ('user_0', 'user_1')"
        " and created_at >= %s order by user_id, created_at"
    )
    since = scale._month(datetime.now(UTC), 1)
    with psycopg.connect(small) as one, psycopg.connect(large) as other:
        assert one.execute(own, [since]).fetchall() == other.execute(own, [since]).fetchall()
        # Row number 0, too.
        count = (
            "select user_id, sum(records)::integer from usage_daily where user_id in ('user_0', 'user_1') group by 1"
        )
        assert sorted(one.execute(count).fetchall()) == sorted(other.execute(count).fetchall())
        for connection, rows in (one, 4_000), (other, 12_000):
            assert connection.execute("select sum(records)::integer from usage_daily").fetchone() == (rows,)
        missing = "select count(*) from usage_default"
        assert other.execute(missing).fetchone() == (0,)
        sums = "select sum(records), sum(tokens_in), sum(cost) from usage_daily where day >= %s"
        raw = "select count(*), sum(tokens_in), sum(cost) from usage where created_at >= %s"
        assert other.execute(sums, [since.date()]).fetchone() == other.execute(raw, [since]).fetchone()


def test_sizes_that_cannot_be_compared_are_refused(place: Place, settings: Settings, progress: Progress) -> None:
    with pytest.raises(BenchError, match="expected multiples of 400"):
        scale.bench(place, settings, Options(largest=4_100, smallest=4_000, heavy=400, ordinary=200), progress)
    with pytest.raises(BenchError, match="expected more rows than the 4,000"):
        scale.bench(place, settings, Options(largest=4_000, smallest=4_000, heavy=400, ordinary=200), progress)
