"""Usage: what was consumed, at what cost; recorded once, summed by day."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw

from crafely.api.recorder import store
from crafely.api.usage_records import UsageRecord, UsageRow, columns, encode_record, encode_records
from crafely.api.wire import (
    Call,
    FieldError,
    ListQuery,
    Page,
    Problem,
    Query,
    Timestamp,
    decode,
    in_utc,
    invalid,
    page,
    position,
)
from crafely.store import usage
from crafely.store.usage import DailyUsage, DailyUsageByUser, Usage, UsageStats

T = TypeVar("T")
When = TypeVar("When", date, datetime)

# The longest range of the sums, and what they span when nothing is said.
MAX_DAYS = 1100
DEFAULT_DAYS = 30
_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
_ORDER = "expected a later one than from"
_UNKNOWN_KEY = "expected the id of one of the caller's API keys"

# One element of the array: looked at one by one, so that a bad one fails alone.
Item = Annotated[Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/UsageRecord"})]
Items = Annotated[list[Item], Meta(min_length=1, max_length=1000)]
Text = Annotated[str, Meta(min_length=1, max_length=255)]
_FROM = Meta(description="The first moment that counts.")
_TO = Meta(description="The first moment that no longer counts.")

_record = msgspec.json.Decoder(UsageRecord)


class Outcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What became of one record.

    recorded; duplicate (its eventId was counted before: nothing changed); or invalid (not stored: see errors).
    """

    status: Literal["recorded", "duplicate", "invalid"]
    # The record's id; of a duplicate, the id of the first (null if that one is being stored in this very moment).
    id: str | None = None
    duplicate: bool = False
    errors: list[FieldError] = []


class Outcomes(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What became of each record, in the order in which they were sent."""

    data: list[Outcome]
    recorded: int
    duplicates: int
    invalid: int


class ListUsage(ListQuery, kw_only=True, frozen=True):
    """Which usage to list."""

    api_key_id: Text | None = None
    provider: Text | None = None
    model: Text | None = None
    type: Text | None = None
    from_: Annotated[Timestamp, _FROM] | None = msgspec.field(default=None, name="from")
    to: Annotated[Timestamp, _TO] | None = None


class SumsQuery(Query, kw_only=True, frozen=True):
    """Pages of sums."""

    take: Annotated[int, Meta(ge=1, le=1000, description="How many rows a page has at most.")] = 1000
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,6}$", description="nextCursor of the page before.")] | None = None


class UsageStatsQuery(SumsQuery, kw_only=True, frozen=True):
    """Which usage to sum, and by what."""

    group_by: Annotated[
        tuple[Literal["day", "provider", "model", "type"], ...],
        Meta(min_length=1, max_length=4, description="By what to group. Sums of different currencies stay apart."),
    ] = ("provider", "model")
    from_: Annotated[Timestamp, _FROM] | None = msgspec.field(default=None, name="from")
    to: Annotated[Timestamp, _TO] | None = None


class DailyUsageQuery(SumsQuery, kw_only=True, frozen=True):
    """Which UTC days to sum."""

    from_: Annotated[date, Meta(description="The first day.")] | None = msgspec.field(default=None, name="from")
    to: Annotated[date, Meta(description="The day after the last.")] | None = None


async def record(call: Call, body: UsageRecord | Items) -> Outcomes:
    """Record usage.

    One record, or an array of up to 1,000. They are stored when the answer comes. In an array each record stands for
    itself: a bad one is reported in its place and the others are stored; only when all are bad is the answer 422.
    A repeated `eventId` of the same user is answered with `duplicate: true` and counted once. When more records wait
    than the server has room for, the answer is 503 with `Retry-After`, and the record is not stored.

    Usage is never changed. What was counted wrongly is taken back by a record with amounts below 0 and the `createdAt`
    of the day that it corrects, which takes the permission `usage:correct`.
    """
    caller, engine = call.caller, call.services.settings.engine
    row_of = partial(columns, permissions=caller.permissions, user_id=caller.user_id, api_key_id=caller.api_key_id)
    if isinstance(body, UsageRecord):
        row = row_of(body, pointer="")
        if call.transaction is None:
            # With whatever other requests wait for the database at this moment, in one statement.
            recorded = await call.services.recorder.ask(encode_record(row))
        else:
            (recorded,) = await store(call.services.session(call), records=encode_records([row]), engine=engine)
        if recorded.status == "recorded":
            return Outcomes(data=[Outcome(status="recorded", id=recorded.id)], recorded=1, duplicates=0, invalid=0)
        return _answer([_outcome(recorded, "")])
    outcomes: list[Outcome | None] = []
    rows: list[UsageRow] = []
    for index, item in enumerate(body):
        pointer = f"/{index}"
        try:
            rows.append(row_of(_parse(item), pointer=pointer))
            outcomes.append(None)
        except Problem as problem:
            outcomes.append(_invalid(problem, pointer))
    if rows:
        session = call.services.database.session("crafely_meter")
        if call.transaction is not None:
            session = call.services.session(call)
        results = await store(session, records=encode_records(rows), engine=engine)
        remaining = iter(results)
        outcomes = [outcome or _outcome(next(remaining), f"/{index}") for index, outcome in enumerate(outcomes)]
    return _answer([outcome for outcome in outcomes if outcome is not None])


def _parse(item: Raw) -> UsageRecord:
    try:
        return _record.decode(item)
    except msgspec.ValidationError:
        # Once more with the decoder that knows how to explain.
        return decode(bytes(item), _record)


def _invalid(problem: Problem, pointer: str) -> Outcome:
    errors = [
        error
        if (error.pointer or "").startswith(f"{pointer}/")
        else FieldError(detail=error.detail, pointer=pointer + (error.pointer or ""))
        for error in problem.errors
    ]
    return Outcome(status="invalid", errors=errors)


def _outcome(result: usage.Recorded, pointer: str) -> Outcome:
    match result.status:
        case "recorded":
            return Outcome(status="recorded", id=result.id)
        case "duplicate":
            return Outcome(status="duplicate", id=result.id, duplicate=True)
        case _:
            return Outcome(status="invalid", errors=[FieldError(detail=_UNKNOWN_KEY, pointer=f"{pointer}/apiKeyId")])


def _answer(outcomes: list[Outcome]) -> Outcomes:
    counts = [sum(o.status == status for o in outcomes) for status in ("recorded", "duplicate", "invalid")]
    if counts[2] == len(outcomes):
        errors = [error for outcome in outcomes for error in outcome.errors]
        raise Problem(
            "invalid", errors[0].detail if len(outcomes) == 1 else "No record could be stored.", errors=errors
        )
    return Outcomes(data=outcomes, recorded=counts[0], duplicates=counts[1], invalid=counts[2])


async def list_(call: Call, query: ListUsage) -> Page[Usage]:
    """List usage.

    The caller's own records, newest first. `from` counts, `to` does not. Records of months that are kept no longer are
    not in it; their sums are.
    """
    before, before_id = position(query)
    from_time = in_utc(query.from_, parameter="from") if query.from_ else _BEGINNING
    if query.to is not None:
        to_time = in_utc(query.to, parameter="to")
        if to_time <= from_time:
            raise invalid(_ORDER, parameter="to")
        before, before_id = min((before, before_id), (to_time, ""))
    session, user_id = call.services.session(call), call.caller.user_id
    take, skip = query.take + 1, query.skip or 0
    if query.api_key_id is None:
        rows = await usage.list_for_user(
            session,
            user_id=user_id,
            from_time=from_time,
            provider=query.provider,
            model=query.model,
            type=query.type,
            before=before,
            before_id=before_id,
            take=take,
            skip=skip,
        )
    else:
        rows = await usage.list_for_api_key(
            session,
            user_id=user_id,
            api_key_id=query.api_key_id,
            from_time=from_time,
            provider=query.provider,
            model=query.model,
            type=query.type,
            before=before,
            before_id=before_id,
            take=take,
            skip=skip,
        )
    return page(rows, query)


async def stats(call: Call, query: UsageStatsQuery) -> Page[UsageStats]:
    """Sum usage.

    Sums of the caller's usage by provider, model, type or UTC day, and always by currency. `from` counts, `to` does
    not; nothing said means the last 30 days, today included. A column that was not grouped by is null. Of months whose
    records are kept no longer, the sums of whole UTC days are left: a range that begins or ends within one of those
    days is answered with 422.
    """
    # Until midnight: a range of whole days is read from the daily sums alone, whatever today has brought so far.
    to_time = in_utc(query.to, parameter="to") if query.to else datetime.combine(_tomorrow(), time.min, UTC)
    from_time = in_utc(query.from_, parameter="from") if query.from_ else _before(to_time)
    _check_range((to_time - from_time) / timedelta(days=1))
    rows = await usage.stats(
        call.services.session(call),
        user_id=call.caller.user_id,
        from_time=from_time,
        to_time=to_time,
        group_by=list(query.group_by),
        take=query.take + 1,
        skip=int(query.cursor or 0),
    )
    # Afterwards: what goes in this very moment is then missed, if it was.
    for parameter, moment in ("from", from_time), ("to", to_time):
        if moment.time() != time.min and moment < _lately():
            await _require_records(call, parameter, moment)
    return _sums(rows, query)


def _lately() -> datetime:
    """The month before the last one begins: records from then on are never dropped."""
    first = datetime.now(UTC).date().replace(day=1)
    for _ in range(2):
        first = (first - timedelta(days=1)).replace(day=1)
    return datetime.combine(first, time.min, UTC)


async def _require_records(call: Call, parameter: str, moment: datetime) -> None:
    if await usage.is_dropped(call.services.session(call), month=moment.date().replace(day=1)):
        raise invalid(
            "expected midnight (UTC): of this month only the sums of whole days are kept", parameter=parameter
        )


async def daily(call: Call, query: DailyUsageQuery) -> Page[DailyUsage]:
    """Sum usage by day.

    The caller's usage by UTC day, newest first; a day has a row for each currency. `from` counts, `to` does not;
    nothing said means the last 30 days, today included.
    """
    from_day, to_day = _days(query)
    rows = await usage.daily(
        call.services.session(call),
        user_id=call.caller.user_id,
        from_day=from_day,
        to_day=to_day,
        take=query.take + 1,
        skip=int(query.cursor or 0),
    )
    return _sums(rows, query)


async def daily_by_user(call: Call, query: DailyUsageQuery) -> Page[DailyUsageByUser]:
    """Sum usage by day and user.

    For administrators: every user's usage by UTC day, newest first. `from` counts, `to` does not; nothing said means
    the last 30 days, today included.
    """
    from_day, to_day = _days(query)
    rows = await usage.daily_by_user(
        call.services.session(call, "crafely_admin"),
        from_day=from_day,
        to_day=to_day,
        take=query.take + 1,
        skip=int(query.cursor or 0),
    )
    return _sums(rows, query)


def _sums(rows: Sequence[T], query: SumsQuery) -> Page[T]:
    more = len(rows) > query.take
    return Page(data=list(rows[: query.take]), next_cursor=str(int(query.cursor or 0) + query.take) if more else None)


def _days(query: DailyUsageQuery) -> tuple[date, date]:
    to_day = query.to or _tomorrow()
    from_day = query.from_ or _before(to_day)
    _check_range((to_day - from_day).days)
    return from_day, to_day


def _tomorrow() -> date:
    return datetime.now(UTC).date() + timedelta(days=1)


def _before(end: When) -> When:
    try:
        return end - timedelta(days=DEFAULT_DAYS)
    except OverflowError:
        raise invalid("expected a time of this age", parameter="to") from None


def _check_range(days: float) -> None:
    if days <= 0:
        raise invalid(_ORDER, parameter="to")
    if days > MAX_DAYS:
        raise invalid(f"expected at most {MAX_DAYS} days from from to to", parameter="from")
