"""Usage past its months, where somebody serves: written, then dropped; and what the sums say of it afterwards."""

import csv
import gzip
import os
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crafely.api import housekeeping, retention
from crafely.api.retention import Retention
from crafely.config import Settings
from crafely.store import usage
from tests.api.conftest import Api, Server, introduce, serving
from tests.api.test_housekeeping import becomes
from tests.auth.conftest import Signer
from tests.cli.conftest import environment
from tests.db.statements import opened
from tests.store.test_usage_retention import at, month_before, partition

OLD = month_before(4)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """Housekeeping at every moment; what it starts finds the same database."""
    for interval in ("RETENTION", "SEALS"):
        monkeypatch.setattr(housekeeping, interval, 0.05)
    monkeypatch.setattr(retention, "PAUSE", 0.05)
    for name in [name for name in os.environ if name.startswith("CRAFELY_") and not name.startswith("CRAFELY_TEST_")]:
        monkeypatch.delenv(name)
    for name, value in environment(CRAFELY_DATABASE_URL=database_url).items():
        monkeypatch.setenv(name, value)


async def with_old_months(server: Server) -> Api:
    """Two months that are past their time, and one that is not, each with two records of one day, all summed."""
    api = await introduce(server)
    me = await api.alice.get("/v1/me")
    for count in (4, 3, 2):
        month = month_before(count)
        end = (month + timedelta(days=32)).replace(day=1)
        server.sql(
            f"create table if not exists {partition(month)} partition of usage"
            f" for values from ('{month} 00:00Z') to ('{end} 00:00Z')"
        )
        for time in (at(month), at(month).replace("T12", "T18")):
            server.sql(
                "insert into usage (user_id, api_key_id, created_at, model) values (%s, %s, %s, 'm')",
                me["userId"],
                me["apiKeyId"],
                time,
            )
        server.sql(
            "insert into usage_daily"
            " (user_id, day, model, currency, records, tokens_in, tokens_out, tokens_total, cost)"
            " values (%s, %s, 'm', 'usd', 2, 0, 0, 0, 0)",
            me["userId"],
            month.replace(day=10),
        )
    return api


def drops(server: Server) -> list[date]:
    return [month for (month,) in server.sql("select month from usage_drops order by 1")]


def records(server: Server) -> int:
    return int(server.sql("select count(*) from usage")[0][0])


@pytest.mark.usefixtures("brisk")
async def test_a_month_is_written_then_dropped_and_its_sums_stay(
    database_url: str, signer: Signer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    place = tmp_path / "exports"
    async with serving(database_url, signer, usage_months=2, usage_export_dir=place) as server:
        # What begins before these are there finds none, or one after the other.
        api = await with_old_months(server)
        await becomes(lambda: drops(server), lambda found: found == [OLD, month_before(3)])
        assert records(server) == 2
        params = {"from": str(OLD), "to": str(month_before(-1))}
        days = (await api.alice.get("/v1/usage/daily", params=params))["data"]
        assert [row["records"] for row in days] == [2, 2, 2]
        trail = server.sql(
            "select actor_role, request_id, row_id from audit_log where table_name = 'usage' order by id"
        )
        assert trail == [
            ("crafely_admin", "crafely housekeeping", partition(month)) for month in (OLD, month_before(3))
        ]
    files = sorted(place.glob("*.csv.gz"))
    assert [file.name for file in files] == [f"usage-{month:%Y-%m}.csv.gz" for month in (OLD, month_before(3))]
    for file in files:
        rows = list(csv.DictReader(gzip.decompress(file.read_bytes()).decode().splitlines()))
        # A month may go as soon as it is there: of these, what was there by then.
        assert [row["model"] for row in rows] == ["m", "m"]
    assert f"month of usage dropped: {OLD:%Y-%m}" in caplog.text


async def test_one_run_drops_all_that_is_past_its_time(database_url: str, signer: Signer) -> None:
    async with serving(database_url, signer) as server:
        await with_old_months(server)
        async with opened(database_url, roles=["crafely_admin"]) as database:
            admin = database.session("crafely_admin")
            drop = partial(usage.drop_month, admin)
            await Retention(Settings(usage_months=2), lambda: admin, lambda month: drop(month=month)).drop_usage()
        assert drops(server) == [OLD, month_before(3)]


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("kind", ["folder", "file"])
async def test_what_cannot_be_written_is_not_dropped(
    database_url: str, signer: Signer, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    in_the_way = tmp_path / "usage"
    if kind == "folder":
        in_the_way.write_text("")
        place, said = in_the_way / "exports", "no month of usage was dropped: "
    else:
        (in_the_way / f"usage-{OLD:%Y-%m}.csv.gz").mkdir(parents=True)
        place, said = in_the_way, "month of usage not written, and so not dropped: "
    async with serving(database_url, signer, usage_months=2, usage_export_dir=place) as server:
        await with_old_months(server)
        count = caplog.text.count(said)
        await becomes(lambda: caplog.text.count(said), lambda found: found > count + 2)
        assert (drops(server), records(server)) == ([], 6)
        assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("brisk")
async def test_without_a_number_of_months_all_are_kept(database_url: str, signer: Signer) -> None:
    async with serving(database_url, signer) as server:
        await with_old_months(server)
        # A job that comes after it has done its work.
        await becomes(lambda: server.sql("select count(*) from audit_seals")[0][0], bool)
        assert (drops(server), records(server)) == ([], 6)


async def test_sums_that_cut_a_day_whose_records_are_gone_are_refused_and_whole_days_are_told(
    database_url: str, signer: Signer
) -> None:
    async with serving(database_url, signer) as server:
        api = await with_old_months(server)
        noon = at(OLD).replace("T12", "T15")

        async def stats(from_: str, to: str, status: int = 200) -> Any:
            return await api.alice.get("/v1/usage/stats", expect=status, params={"from": from_, "to": to})

        next_day = f"{OLD.replace(day=11)}T00:00:00Z"
        assert [row["records"] for row in (await stats(noon, next_day))["data"]] == [1]
        server.sql("select drop_usage_month(%s)", OLD)
        for parameter, answer in (
            ("from", await stats(noon, next_day, 422)),
            ("to", await stats(f"{OLD}T00:00:00Z", noon, 422)),
        ):
            assert answer["errors"] == [
                {
                    "detail": "expected midnight (UTC): of this month only the sums of whole days are kept",
                    "parameter": parameter,
                }
            ]
        # Whole days are told as before, also as those of another offset; so are cut days of months that are there.
        assert [row["records"] for row in (await stats(f"{OLD}T00:00:00Z", next_day))["data"]] == [2]
        assert [row["records"] for row in (await stats(f"{OLD}T02:00:00+02:00", next_day))["data"]] == [2]
        cut = at(month_before(3)).replace("T12", "T15")
        assert [row["records"] for row in (await stats(cut, datetime.now(UTC).isoformat()))["data"]] == [3]
        # A list has what there is.
        assert len(await api.alice.all("/v1/usage", **{"from": f"{OLD}T00:00:00Z"})) == 4
