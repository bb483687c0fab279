"""What reconciling finds: nothing after any way of writing, and each way in which the two sides can be made differ."""

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from crafely.db.session import Database, Session
from crafely.store import usage
from crafely.store.api_keys import ApiKey
from crafely.store.usage import Difference

DAY = datetime(2026, 10, 31, tzinfo=UTC)
# Records of two months, two users, two currencies, with and without names.
PLANTED: list[tuple[str, dict[str, Any]]] = [
    ("alice", {"created_at": DAY, "provider": "openai", "model": "gpt-4o", "type": "chat", "tokens_in": 5, "cost": 1}),
    ("alice", {"created_at": DAY + timedelta(hours=23, minutes=59), "provider": "openai", "model": "gpt-4o"}),
    ("alice", {"created_at": DAY + timedelta(days=1), "tokens_in": 7, "tokens_out": 8, "tokens_total": 15}),
    ("alice", {"created_at": DAY, "currency": "eur", "cost": "0.000000000001", "event_id": "e"}),
    ("alice", {"created_at": DAY, "currency": "eur", "cost": "100", "event_id": "e"}),
    ("bob", {"created_at": DAY, "provider": "openai", "currency": None, "cost": "2.5"}),
]

Reconcile = Callable[..., Awaitable[list[Difference]]]


@pytest.fixture
def backup(database_url: str) -> Database:
    return Database(database_url, size=1, pool_timeout=5, statement_timeout=10, roles=["crafely_backup"])


@pytest.fixture
async def reconcile(meter: Session, key: ApiKey, key_of_bob: ApiKey, backup: Database) -> Any:
    """Reconciles; records are there."""
    keys = {"alice": key.id, "bob": key_of_bob.id}
    records = [{"user_id": user, "api_key_id": keys[user], "currency": "usd", **record} for user, record in PLANTED]
    await usage.record(meter, records=msgspec.Raw(msgspec.json.encode(records)))
    await usage.record(meter, records=msgspec.Raw(msgspec.json.encode(records[:3])))
    await backup.open()

    async def reconcile(
        from_day: date | None = None, to_day: date | None = None, user_id: str | None = None, take: int = 100
    ) -> list[Difference]:
        session = backup.session("crafely_backup")
        return await usage.reconcile(session, from_day=from_day, to_day=to_day, user_id=user_id, take=take)

    yield reconcile
    await backup.close()


def group(difference: Difference) -> tuple[Any, ...]:
    d = difference
    return (d.day, d.user_id, d.provider, d.model, d.type, d.currency)


async def test_nothing_is_found_after_records_retries_and_refusals(reconcile: Reconcile) -> None:
    assert await reconcile() == []


@pytest.mark.parametrize("column", ["records", "tokens_in", "tokens_out", "tokens_total", "cost"])
async def test_an_altered_sum_is_found(reconcile: Reconcile, superuser: psycopg.Connection, column: str) -> None:
    update = SQL("update usage_daily set {0} = {0} + 1 where user_id = 'bob'").format(Identifier(column))
    assert superuser.execute(update).rowcount == 1

    [found] = await reconcile()

    assert group(found) == (DAY.date(), "bob", "openai", None, None, None)
    sides = {
        name: (getattr(found, f"raw_{name}"), getattr(found, f"daily_{name}"))
        for name in ("records", "tokens_in", "tokens_out", "tokens_total", "cost")
    }
    assert sides.pop(column) == {"records": (1, 2), "cost": (Decimal("2.5"), Decimal("3.5"))}.get(column, (0, 1))
    assert all(raw == daily for raw, daily in sides.values())


async def test_the_twelfth_place_counts(reconcile: Reconcile, superuser: psycopg.Connection) -> None:
    superuser.execute("update usage_daily set cost = 0.000000000002 where currency = 'eur'")

    [found] = await reconcile()

    assert (str(found.raw_cost), str(found.daily_cost)) == ("0.000000000001", "0.000000000002")


async def test_a_missing_sum_is_found(reconcile: Reconcile, superuser: psycopg.Connection) -> None:
    superuser.execute("delete from usage_daily where provider is null and currency = 'usd'")

    [found] = await reconcile()

    assert group(found) == (DAY.date() + timedelta(days=1), "alice", None, None, None, "usd")
    assert (found.raw_records, found.raw_tokens_total, found.daily_records, found.daily_cost) == (2, 30, None, None)


@pytest.mark.parametrize("records", [0, 3])
async def test_a_sum_without_records_is_found_even_if_it_is_of_nothing(
    reconcile: Reconcile, superuser: psycopg.Connection, records: int
) -> None:
    superuser.execute(
        "insert into usage_daily (user_id, day, model, records, tokens_in, tokens_out, tokens_total, cost)"
        " values ('carol', '2020-02-29', 'gpt', %s, 0, 0, 0, 0)",
        [records],
    )

    [found] = await reconcile()

    assert group(found) == (date(2020, 2, 29), "carol", None, "gpt", None, None)
    assert (found.raw_records, found.raw_cost, found.daily_records, found.daily_cost) == (
        None,
        None,
        records,
        Decimal(0),
    )


async def test_a_deleted_record_is_found(reconcile: Reconcile, superuser: psycopg.Connection) -> None:
    superuser.execute("delete from usage where user_id = 'alice' and type = 'chat' and tokens_in = 5 and cost = 1")

    [found] = await reconcile()

    assert group(found) == (DAY.date(), "alice", "openai", "gpt-4o", "chat", "usd")
    assert (found.raw_records, found.daily_records, found.daily_tokens_in, found.daily_cost) == (
        None,
        2,
        10,
        Decimal(2),
    )


async def test_an_altered_record_is_found_in_the_group_it_left_and_the_one_it_came_to(
    reconcile: Reconcile, superuser: psycopg.Connection
) -> None:
    superuser.execute("update usage set currency = 'usd' where user_id = 'bob'")

    left, came = sorted(await reconcile(), key=lambda found: found.raw_records or 0)

    assert (left.currency, left.raw_records, left.daily_records) == (None, None, 1)
    assert (came.currency, came.raw_records, came.daily_records) == ("usd", 1, None)


async def test_a_range_has_its_first_day_and_not_its_last_and_a_user_is_one(
    reconcile: Reconcile, superuser: psycopg.Connection
) -> None:
    superuser.execute("update usage_daily set records = records + 1")
    day, after = DAY.date(), DAY.date() + timedelta(days=1)

    found = await reconcile()
    assert [group(one) for one in found] == sorted(
        map(group, found), key=lambda key: [str(part or "~") for part in key]
    )
    assert {one.day for one in found} == {day, after}
    assert {one.day for one in await reconcile(day, after)} == {day}
    assert {one.day for one in await reconcile(None, day)} == set()
    assert {one.day for one in await reconcile(after, None)} == {after}
    assert {one.user_id for one in await reconcile(user_id="bob")} == {"bob"}
    assert len(await reconcile(take=2)) == 2


async def test_the_months_are_those_with_sums(reconcile: Reconcile, backup: Database) -> None:
    assert await usage.months(backup.session("crafely_backup")) == [date(2026, 10, 1), date(2026, 11, 1)]
