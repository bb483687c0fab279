"""Records that come late: each lands in its month and on its day (UTC), and later than that it is refused."""

from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal

import pytest

from crafely.api.usage_records import AHEAD, LATEST
from tests.api.conftest import Server, introduce

MICROSECOND = timedelta(microseconds=1)
# A request takes less.
MINUTE = timedelta(minutes=1)


async def test_late_records_land_in_their_month_and_on_their_day(own: Server) -> None:
    api = await introduce(own)
    user = (await api.alice.get("/v1/me"))["userId"]
    now = datetime.now(UTC)
    today = datetime.combine(now.date(), time.min, UTC)
    month = today.replace(day=1)
    yesterday = today - timedelta(days=1)
    moments = [
        # As late as it may be; both sides of midnight, and of the month's beginning; and by a clock that is ahead.
        now - LATEST + MINUTE,
        today - MICROSECOND,
        today,
        yesterday - MICROSECOND,
        month - MICROSECOND,
        month,
        now + AHEAD - MINUTE,
    ]
    for hours in (0, 14, -12):
        zone = timezone(timedelta(hours=hours))
        sent = [{"createdAt": moment.astimezone(zone).isoformat(), "cost": "1"} for moment in moments]
        assert (await api.alice.post("/v1/usage", sent))["recorded"] == len(moments)
    found = own.sql("select created_at, tableoid::regclass::text from usage where user_id = %s order by 1", user)
    assert found == sorted(
        [(moment, f"usage_y{moment:%Y}m{moment:%m}") for moment in moments for _ in range(3)],
    )
    days = dict(own.sql("select day, records from usage_daily where user_id = %s", user))
    wanted: dict[object, int] = {}
    for moment in moments:
        wanted[moment.date()] = wanted.get(moment.date(), 0) + 3
    assert days == wanted


async def test_what_is_later_or_too_early_is_refused_with_its_rule(own: Server) -> None:
    api = await introduce(own)
    user = (await api.alice.get("/v1/me"))["userId"]
    now = datetime.now(UTC)
    assert timedelta(days=35) == LATEST
    for moment in (now - LATEST - MICROSECOND, now + AHEAD + MINUTE, now - timedelta(days=400)):
        answer = await api.alice.post("/v1/usage", {"createdAt": moment.isoformat()}, expect=422)
        assert answer["errors"] == [{"detail": "expected a time of the last 35 days", "pointer": "/createdAt"}]
    assert own.sql("select count(*) from usage where user_id = %s", user) == [(0,)]
    assert own.sql("select count(*) from usage_daily where user_id = %s", user) == [(0,)]


AMOUNTS = ("tokensIn", "tokensOut", "tokensTotal", "cost")


async def test_a_correction_lands_on_the_day_that_it_corrects(own: Server) -> None:
    clerk = await own.caller("carol", "usage:write", "usage:read", "usage:correct")
    counted = {"provider": "openai", "tokensIn": 5, "tokensOut": 7, "cost": "0.000000000003"}
    taken = {"provider": "openai", "tokensIn": -2, "tokensOut": 0, "cost": "-0.000000000001"}
    days = [datetime.now(UTC) - timedelta(days=count) for count in (0, 1, 34)]
    for day in days:
        moment = day.isoformat()
        await clerk.post("/v1/usage", {**counted, "createdAt": moment})
        # Sent twice, it takes back once.
        for duplicate in (0, 1):
            answer = await clerk.post("/v1/usage", {**taken, "createdAt": moment, "eventId": f"less {moment}"})
            assert answer["duplicates"] == duplicate
    params = {"from": str(days[-1].date())}
    daily = (await clerk.get("/v1/usage/daily", params=params))["data"]
    assert sorted(row["day"] for row in daily) == sorted(str(day.date()) for day in days)
    for row in daily:
        assert (row["records"], row["tokensIn"], row["tokensOut"], row["tokensTotal"]) == (2, 3, 7, 10)
        assert Decimal(row["cost"]) == Decimal("0.000000000002")
    # A list has what was counted and what was taken back; sums that cut a day are of the records themselves.
    assert len(await clerk.all("/v1/usage")) == 6
    cut = {"from": (days[-1] - timedelta(seconds=1)).isoformat(), "to": (days[0] + timedelta(seconds=1)).isoformat()}
    (summed,) = (await clerk.get("/v1/usage/stats", params=cut))["data"]
    assert (summed["records"], summed["tokensTotal"]) == (6, 30)
    assert own.sql("select count(*) from usage_daily where user_id = 'carol'") == [(3,)]


@pytest.mark.parametrize("field", AMOUNTS)
async def test_no_wildcard_takes_usage_back(own: Server, field: str) -> None:
    value = "-1" if field == "cost" else -1
    everything = await own.caller("dave", "*")
    refused = await everything.post("/v1/usage", {field: value}, expect=422)
    assert refused["errors"] == [
        {"detail": "expected 0 or more; less takes the permission usage:correct", "pointer": f"/{field}"}
    ]
    for permission in ("usage:correct", "admin"):
        caller = await own.caller("dave", "usage:write", permission)
        assert (await caller.post("/v1/usage", {field: value}))["recorded"] == 1
        # Not both in one record.
        other = "tokensIn" if field == "cost" else "cost"
        refused = await caller.post("/v1/usage", {field: value, other: 1 if other == "tokensIn" else "1"}, expect=422)
        assert [error["pointer"] for error in refused["errors"]] == [f"/{field}"]
    assert own.sql("select count(*) from usage where user_id = 'dave'") == [(2,)]


async def test_what_is_taken_back_has_bounds_as_well(own: Server) -> None:
    clerk = await own.caller("carol", "usage:write", "usage:correct")
    for body, pointer in (
        ({"tokensTotal": -(2**31)}, "/tokensTotal"),
        ({"tokensIn": -(2**31) + 1, "tokensOut": -1}, "/tokensIn"),
        ({"cost": "-100000000"}, "/cost"),
        ({"cost": "-0.0000000000001"}, "/cost"),
        ({"cost": "-Infinity"}, "/cost"),
    ):
        refused = await clerk.post("/v1/usage", body, expect=422)
        assert [error["pointer"] for error in refused["errors"]] == [pointer]
    assert (await clerk.post("/v1/usage", {"cost": "-99999999.999999999999"}))["recorded"] == 1
