"""Records that come late: each lands in its month and on its day (UTC), and later than that it is refused."""

from datetime import UTC, datetime, time, timedelta, timezone

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
    # What is taken back is no record of less than nothing: sums only grow.
    for field in ("cost", "tokensIn"):
        refused = await api.alice.post("/v1/usage", {field: "-1" if field == "cost" else -1}, expect=422)
        assert [error["pointer"] for error in refused["errors"]] == [f"/{field}"]
    assert own.sql("select count(*) from usage where user_id = %s", user) == [(0,)]
    assert own.sql("select count(*) from usage_daily where user_id = %s", user) == [(0,)]
