"""Recording usage, and the sums of it; sums are compared with what plain Python makes of the same records."""

import asyncio
import random
import re
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crafely.db import query
from crafely.db.session import Session
from crafely.store import usage
from crafely.store.api_keys import ApiKey
from crafely.store.usage import Recorded
from tests.db.statements import opened

# A record as usage.record takes it; and what identifies and what measures a group of them.
Record = dict[str, Any]
Sums = dict[tuple[Any, ...], tuple[int, int, int, int, Decimal]]

BIG = datetime.max.replace(tzinfo=UTC)
DIMENSIONS = ["day", "provider", "model", "type"]


def raw(records: list[Record]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.Encoder(decimal_format="string").encode(records))


async def record(session: Session, key: ApiKey | str, *records: Record, user_id: str = "alice") -> list[Recorded]:
    api_key_id = key if isinstance(key, str) else key.id
    given = [{"user_id": user_id, "api_key_id": api_key_id, "currency": "usd", **r} for r in records]
    return await usage.record(session, records=raw(given))


async def listed(session: Session, **filters: str) -> list[usage.Usage]:
    narrow: dict[str, Any] = {"provider": None, "model": None, "type": None, **filters}
    return await usage.list_for_user(
        session,
        user_id="alice",
        from_time=datetime(1, 1, 1, tzinfo=UTC),
        before=BIG,
        before_id="",
        take=1000,
        skip=0,
        **narrow,
    )


def brute_force(records: Iterable[Record], group_by: list[str]) -> Sums:
    """Groups and adds records, each with its created_at and currency."""
    sums: Sums = {}
    for r in records:
        full = {**r, "day": r["created_at"].date()}
        group = (*(full.get(d) if d in group_by else None for d in DIMENSIONS), r["currency"])
        count, *tokens, cost = sums.get(group, (0, 0, 0, 0, Decimal(0)))
        tokens_in, tokens_out, tokens_total = (
            t + (r.get(c) or 0) for t, c in zip(tokens, ("tokens_in", "tokens_out", "tokens_total"), strict=True)
        )
        sums[group] = (count + 1, tokens_in, tokens_out, tokens_total, cost + (r.get("cost") or 0))
    return sums


def as_sums(rows: Iterable[Any]) -> Sums:
    """Rows of stats or of the daily sums, as brute_force has them."""
    found = {}
    for r in rows:
        group = (*(getattr(r, d, None) for d in DIMENSIONS), r.currency)
        assert group not in found
        found[group] = (r.records, r.tokens_in, r.tokens_out, r.tokens_total, r.cost)
    return found


async def stats(session: Session, start: datetime, end: datetime, group_by: list[str]) -> Sums:
    rows = await usage.stats(
        session, user_id="alice", from_time=start, to_time=end, group_by=group_by, take=1000, skip=0
    )
    return as_sums(rows)


def rollup_equals_rows(superuser: psycopg.Connection) -> bool:
    """Whether usage_daily is exactly what the rows of usage add up to, and holds no NULL that they do not."""
    difference = superuser.execute("""
        with summed as (
            select
                user_id, (created_at at time zone 'utc')::date as day, provider, model, type, currency,
                count(*) as records, coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0),
                coalesce(sum(tokens_total), 0), coalesce(sum(cost), 0)::numeric(30, 12)
            from usage
            group by 1, 2, 3, 4, 5, 6
        ),
        kept as (
            select
                user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
            from usage_daily
        )
        (table summed except table kept) union all (table kept except table summed)
    """)
    return difference.fetchall() == []


async def test_a_record_comes_back_as_it_went(alice: Session, key: ApiKey) -> None:
    at = datetime(2026, 11, 3, 4, 5, 6, 789000, tzinfo=UTC)
    full = {
        "created_at": at,
        "provider": "openai",
        "model": "gpt-4",
        "type": "chat",
        "tokens_in": 1,
        "tokens_out": 2,
        "tokens_total": 3,
        "cost": Decimal("0.000000000001"),
        "currency": "eur",
        "metadata": {"a": [1, None, "é"]},
        "event_id": "e-1",
    }
    [answer] = await record(alice, key, full)
    [row] = await listed(alice)

    assert answer == Recorded("recorded", row.id)
    assert row.id.startswith("use_")
    assert row.api_key_id == key.id
    assert [getattr(row, n) for n in full if n != "metadata"] == [v for n, v in full.items() if n != "metadata"]
    assert msgspec.json.decode(row.metadata or b"") == full["metadata"]


async def test_a_record_that_says_nothing_is_of_now(alice: Session, key: ApiKey, superuser: psycopg.Connection) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)

    await record(alice, key, {})
    [row] = await listed(alice)

    assert before < row.created_at < datetime.now(UTC) + timedelta(minutes=1)
    assert (row.provider, row.tokens_total, row.cost, row.event_id, row.metadata) == (None,) * 5
    assert rollup_equals_rows(superuser)


async def test_each_record_is_answered_in_order_and_fails_alone(
    meter: Session, alice: Session, key: ApiKey, key_of_bob: ApiKey, superuser: psycopg.Connection
) -> None:
    [first] = await record(meter, key, {"event_id": "seen before", "tokens_in": 1})

    answers = await usage.record(
        meter,
        records=raw(
            [
                {"user_id": "alice", "api_key_id": key.id, "tokens_in": 10},
                {"user_id": "alice", "api_key_id": key.id, "tokens_in": 100, "event_id": "seen before"},
                {"user_id": "alice", "api_key_id": "key_nobodys", "tokens_in": 1000},
                {"user_id": "alice", "api_key_id": key_of_bob.id, "tokens_in": 1000},
                {"user_id": "alice", "api_key_id": key.id, "tokens_in": 10_000, "event_id": "new"},
                {"user_id": "alice", "api_key_id": key.id, "tokens_in": 100_000, "event_id": "new"},
                {"user_id": "bob", "api_key_id": key_of_bob.id, "event_id": "new"},
            ]
        ),
    )

    assert [a.status for a in answers] == [
        "recorded", "duplicate", "unknown_key", "unknown_key", "recorded", "duplicate", "recorded",
    ]  # fmt: skip  # one line is what is compared
    assert answers[1].id == first.id
    assert answers[2].id is answers[3].id is None
    assert answers[5].id == answers[4].id
    assert answers[6].id != answers[4].id
    rows = await listed(alice)
    assert {first.id, answers[0].id, answers[4].id} == {row.id for row in rows}
    assert sum(row.tokens_in or 0 for row in rows) == 10_011
    assert rollup_equals_rows(superuser)


async def test_ids_are_uuids_of_version_7_in_the_order_of_the_records(alice: Session, key: ApiKey) -> None:
    """So records of one moment are listed in the reverse of the order in which they were sent."""
    before = int(time.time() * 1000)
    ids = [a.id or "" for _ in range(2) for a in await record(alice, key, *({} for _ in range(300)))]

    uuids = [uuid.UUID(id_.removeprefix("use_")) for id_ in ids]
    assert ids == [f"use_{u}" for u in uuids]
    assert {(u.version, u.variant) for u in uuids} == {(7, uuid.RFC_4122)}
    assert all(before - 1 <= u.int >> 80 <= time.time() * 1000 + 1 for u in uuids)
    assert ids == sorted(set(ids))
    assert [row.id for row in await listed(alice)] == ids[::-1]


async def test_neither_ledger_nor_keys_are_ever_read_from_end_to_end(superuser: psycopg.Connection) -> None:
    """However few there were when a busy connection made its plan: they grow by thousands, the plan stays."""
    statement = query.statements["usage/record"]
    superuser.execute("set role crafely_meter")
    superuser.execute("set plan_cache_mode = force_generic_plan")
    superuser.execute(b"prepare recording as " + statement.text.rstrip(b";\n"))

    plan = "\n".join(row[0] for row in superuser.execute("explain execute recording ('[]')"))

    assert "Index Scan using usage_events_pkey" in plan
    assert re.search("Index (Only )?Scan using api_keys_", plan)
    assert "Seq Scan" not in plan


async def test_the_sums_are_stamped_by_the_statement_and_by_nothing_else_than_now(
    meter: Session, key: ApiKey, superuser: psycopg.Connection
) -> None:
    def stamp() -> tuple[datetime, datetime]:
        [row] = superuser.execute("select updated_at, clock_timestamp() from usage_daily").fetchall()
        return row[0], row[1]

    await record(meter, key, {})
    _, between = stamp()
    await record(meter, key, {})
    assert stamp()[0] > between

    _, between = stamp()
    superuser.execute("update usage_daily set records = 7")
    assert stamp()[0] > between
    _, between = stamp()
    superuser.execute("update usage_daily set records = 8, updated_at = '2001-01-01'")
    assert stamp()[0] > between


async def test_nothing_is_recorded_of_an_empty_array(alice: Session) -> None:
    assert await usage.record(alice, records=msgspec.Raw(b"[]")) == []


async def test_a_user_records_against_own_keys_only(
    alice: Session, key_of_bob: ApiKey, superuser: psycopg.Connection
) -> None:
    """Whichever user she claims to be: row-level security hides his key from her."""
    for user_id in ("alice", "bob"):
        [answer] = await record(alice, key_of_bob, {"event_id": "e"}, user_id=user_id)
        assert answer == Recorded("unknown_key", None)

    assert superuser.execute("select from usage").rowcount == 0
    assert superuser.execute("select from usage_events").rowcount == 0


@pytest.mark.parametrize(
    ("broken", "constraint"),
    [
        ({"tokens_in": -1, "tokens_out": 1}, "usage_tokens_in_tokens_out_tokens_total_cost_check"),
        ({"tokens_total": 1, "cost": Decimal("-0.01")}, "usage_tokens_in_tokens_out_tokens_total_cost_check"),
        ({"currency": "EURO"}, "usage_currency_check"),
        ({"provider": ""}, "usage_provider_check"),
        ({"metadata": [1]}, "usage_metadata_check"),
        ({"event_id": "e" * 256}, "usage_event_id_check"),
    ],
)
async def test_a_record_that_breaks_a_rule_stops_the_whole_call(
    alice: Session, key: ApiKey, superuser: psycopg.Connection, broken: Record, constraint: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        await record(alice, key, {"event_id": "sound", "cost": Decimal(1)}, broken)

    assert caught.value.diag.constraint_name == constraint
    for table in ("usage", "usage_daily", "usage_events"):
        assert superuser.execute(f"select from {table}".encode()).rowcount == 0


async def test_an_event_is_counted_once_across_months(alice: Session, key: ApiKey) -> None:
    now = datetime.now(UTC)
    [first] = await record(alice, key, {"event_id": "e", "created_at": now - timedelta(days=40)})

    [again] = await record(alice, key, {"event_id": "e", "created_at": now})

    assert again == Recorded("duplicate", first.id)
    assert len(await listed(alice)) == 1


async def test_twenty_workers_with_the_same_events_count_each_once(
    database_url: str, key: ApiKey, key_of_bob: ApiKey, superuser: psycopg.Connection
) -> None:
    """Two users, few groups, and events that overlap in every order: what would deadlock or count twice."""
    dice = random.Random(7)  # noqa: S311  # a shuffle, no secret
    at = datetime.now(UTC).replace(hour=12)

    def batch() -> list[Record]:
        return [
            {
                "user_id": user,
                "api_key_id": {"alice": key.id, "bob": key_of_bob.id}[user],
                "event_id": f"event {number}" if number < 150 else None,
                "created_at": at - timedelta(days=number % 3),
                "provider": ["openai", "replicate", None][number % 3],
                "tokens_in": number,
                "cost": Decimal(number) / 10**12,
            }
            for user, number in ((dice.choice(["alice", "bob"]), dice.randrange(200)) for _ in range(50))
        ]

    batches = [batch() for _ in range(20)]
    async with opened(database_url, size=40, roles=["crafely_meter"]) as database:
        meter = database.session("crafely_meter")
        answers = await asyncio.gather(*(usage.record(meter, records=raw(records)) for records in batches))

    told = [
        (r, a) for records, answer in zip(batches, answers, strict=True) for r, a in zip(records, answer, strict=True)
    ]
    recorded = [r for r, a in told if a.status == "recorded"]
    events = [(r["user_id"], r["event_id"]) for r in recorded if r["event_id"]]
    assert len(events) == len(set(events))
    assert set(events) == {(r["user_id"], r["event_id"]) for r, _ in told if r["event_id"]}
    assert all(a.status == "recorded" for r, a in told if r["event_id"] is None)
    assert superuser.execute("select count(*), sum(cost) from usage").fetchone() == (
        len(recorded),
        sum(r["cost"] for r in recorded),
    )
    assert rollup_equals_rows(superuser)


EDGES = [
    datetime(2026, 9, 30, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2026, 10, 1, tzinfo=UTC),
    datetime(2026, 10, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    datetime(2026, 10, 31, 12, 0, tzinfo=UTC),
    datetime(2026, 11, 1, tzinfo=UTC),
]
times = st.one_of(
    st.sampled_from(EDGES),
    st.timedeltas(timedelta(0), timedelta(days=37)).map(lambda later: datetime(2026, 9, 28, tzinfo=UTC) + later),
)
records = st.fixed_dictionaries(
    {"created_at": times, "currency": st.sampled_from(["usd", "eur", None])},
    optional={
        "provider": st.sampled_from(["openai", "replicate", None]),
        "model": st.sampled_from(["gpt-4", "gpt-4o", None]),
        "type": st.sampled_from(["chat", "image"]),
        "tokens_in": st.integers(0, 2**31 - 1),
        "tokens_out": st.integers(0, 2**31 - 1) | st.none(),
        "tokens_total": st.integers(0, 2**31 - 1),
        "cost": st.decimals(0, 99_999_999, places=12) | st.none(),
    },
)
ranges = st.tuples(times, times, st.lists(st.sampled_from(DIMENSIONS), unique=True))


@given(planted=st.lists(records, max_size=12), asked=st.lists(ranges, min_size=6, max_size=6))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_stats_are_the_sums_of_the_records_in_any_range(
    alice: Session,
    key: ApiKey,
    superuser: psycopg.Connection,
    planted: list[Record],
    asked: list[tuple[datetime, datetime, list[str]]],
) -> None:
    superuser.execute("truncate usage, usage_daily, usage_events")
    await record(alice, key, *planted)

    assert rollup_equals_rows(superuser)
    for start, end, group_by in asked:
        inside = [r for r in planted if start <= r["created_at"] < end]
        assert await stats(alice, start, end, group_by) == brute_force(inside, group_by)
    first, last = asked[0][0].date(), asked[0][1].date()
    of_days = [r for r in planted if first <= r["created_at"].date() < last]
    found = await usage.daily(alice, user_id="alice", from_day=first, to_day=last, take=1000, skip=0)
    assert as_sums(found) == brute_force(of_days, ["day"])
    assert [row.day for row in found] == sorted((row.day for row in found), reverse=True)


async def test_stats_come_in_pages_newest_day_first(alice: Session, key: ApiKey) -> None:
    await record(
        alice, key, *({"created_at": datetime(2026, 11, d, tzinfo=UTC), "model": m} for d in (1, 2) for m in "ba")
    )

    pages = [
        await usage.stats(
            alice, user_id="alice", from_time=datetime(2026, 10, 1, tzinfo=UTC), to_time=BIG,
            group_by=["day", "model"], take=3, skip=skip,
        )
        for skip in (0, 3, 6)
    ]  # fmt: skip  # a table of pages

    assert [[(r.day and r.day.day, r.model) for r in page] for page in pages] == [
        [(2, "a"), (2, "b"), (1, "a")],
        [(1, "b")],
        [],
    ]


async def test_many_tiny_costs_add_up_exactly(alice: Session, key: ApiKey) -> None:
    """20 tokens at $0.02 a million, a thousand times over: at six places all of it would round away."""
    tiny = Decimal("0.0000004") + Decimal("0.000000000001")
    for _ in range(4):
        await record(alice, key, *({"cost": tiny, "created_at": EDGES[4]} for _ in range(250)))

    assert await stats(alice, EDGES[0], EDGES[5], []) == {
        (None, None, None, None, "usd"): (1000, 0, 0, 0, Decimal("0.000400001000")),
    }


async def test_daily_by_user_adds_up_everybody(meter: Session, admin: Session, key: ApiKey, key_of_bob: ApiKey) -> None:
    for user_id, its_key, cost in (("alice", key, 1), ("bob", key_of_bob, 2), ("alice", key, 4)):
        for at in EDGES:
            await record(meter, its_key, {"created_at": at, "cost": Decimal(cost)}, user_id=user_id)

    found = await usage.daily_by_user(admin, from_day=date(2026, 10, 1), to_day=date(2026, 11, 1), take=100, skip=0)

    assert [(r.day.day, r.user_id, r.currency, r.records, int(r.cost)) for r in found] == [
        (31, "alice", "usd", 2, 5),
        (31, "bob", "usd", 1, 2),
        (25, "alice", "usd", 2, 5),
        (25, "bob", "usd", 1, 2),
        (1, "alice", "usd", 4, 10),
        (1, "bob", "usd", 2, 4),
    ]


@pytest.mark.parametrize(
    ("filters", "models"),
    [
        ({}, ["c", "b", "a"]),
        ({"provider": "openai"}, ["b", "a"]),
        ({"model": "b"}, ["b"]),
        ({"type": "image"}, ["c"]),
        ({"provider": "openai", "type": "image"}, []),
    ],
)
async def test_lists_are_narrowed(alice: Session, key: ApiKey, filters: dict[str, str], models: list[str]) -> None:
    await record(
        alice,
        key,
        {"created_at": EDGES[1], "provider": "openai", "model": "a", "type": "chat"},
        {"created_at": EDGES[2], "provider": "openai", "model": "b", "type": "chat"},
        {"created_at": EDGES[3], "provider": "replicate", "model": "c", "type": "image"},
    )

    assert [row.model for row in await listed(alice, **filters)] == models


async def test_events_are_forgotten_by_age_and_may_then_come_again(
    alice: Session, admin: Session, key: ApiKey, superuser: psycopg.Connection
) -> None:
    await record(alice, key, {"event_id": "old"}, {"event_id": "young"})
    superuser.execute("update usage_events set created_at = now() - interval '41 days' where event_id = 'old'")

    assert await usage.forget_events(admin, older_than=datetime.now(UTC) - timedelta(days=40)) == 1

    answers = await record(alice, key, {"event_id": "old"}, {"event_id": "young"})
    assert [a.status for a in answers] == ["recorded", "duplicate"]
