"""Housekeeping of the months: nothing is refused for want of one, and nothing is lost when it is made."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg
import pytest

from crafely.db import migrate
from crafely.db.session import Session
from crafely.store import monitor, usage
from crafely.store.api_keys import ApiKey
from tests.db.statements import until

NOW = datetime.now(UTC)


def month_after(count: int) -> datetime:
    """The first of a month so many months from now."""
    months = NOW.year * 12 + NOW.month - 1 + count
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


def partition(at: datetime) -> str:
    return f"usage_y{at:%Y}m{at:%m}"


async def record(session: Session, key: ApiKey, *times: datetime) -> None:
    records = [{"user_id": "alice", "api_key_id": key.id, "created_at": at, "cost": "0.5"} for at in times]
    assert {r.status for r in await usage.record(session, records=msgspec.Raw(msgspec.json.encode(records)))} == {
        "recorded"
    }


def places(superuser: psycopg.Connection) -> list[tuple[str, datetime]]:
    found = superuser.execute("select tableoid::regclass::text, created_at from usage order by created_at")
    return [(name, at) for name, at in found.fetchall()]


async def test_rows_of_any_time_are_taken(alice: Session, key: ApiKey, superuser: psycopg.Connection) -> None:
    times = [datetime(1999, 1, 1, tzinfo=UTC), NOW, month_after(30)]

    await record(alice, key, *times)

    assert places(superuser) == [
        ("usage_default", times[0]),
        (partition(NOW), times[1]),
        ("usage_default", times[2]),
    ]


async def test_the_months_at_hand_are_there_already(admin: Session) -> None:
    assert await monitor.ensure_partitions(admin, months_ahead=3) == monitor.Partitions(usage=0, audit_log=0)
    assert await monitor.ensure_partitions(admin, months_ahead=5) == monitor.Partitions(usage=2, audit_log=2)
    assert await monitor.ensure_partitions(admin, months_ahead=5) == monitor.Partitions(usage=0, audit_log=0)


async def test_rows_move_to_their_month_when_it_is_made(
    alice: Session, admin: Session, key: ApiKey, superuser: psycopg.Connection
) -> None:
    """The last moment of a month, the first of the next, and one that still has no month."""
    first, second, far = month_after(4), month_after(5), month_after(30)
    edge = second - timedelta(microseconds=1)
    await record(alice, key, first, edge, second, far)
    assert {name for name, _ in places(superuser)} == {"usage_default"}
    rows = superuser.execute("select to_jsonb(u) from usage u order by created_at").fetchall()
    trail = superuser.execute("select count(*) from audit_log").fetchall()

    await monitor.ensure_partitions(admin, months_ahead=5)

    assert places(superuser) == [
        (partition(first), first),
        (partition(first), edge),
        (partition(second), second),
        ("usage_default", far),
    ]
    assert superuser.execute("select to_jsonb(u) from usage u order by created_at").fetchall() == rows
    # That rows moved is no news; that one is changed or deleted still is.
    assert superuser.execute("select count(*) from audit_log").fetchall() == trail
    superuser.execute("delete from usage where created_at = %s", [first])
    assert superuser.execute("select count(*) - 1 from audit_log").fetchall() == trail


async def test_a_month_that_is_made_later_is_like_the_others(admin: Session, superuser: psycopg.Connection) -> None:
    await monitor.ensure_partitions(admin, months_ahead=6)

    for catalogue in (
        "select count(*) from pg_index where indrelid = %s::regclass and indisvalid",
        "select count(*) from pg_constraint where conrelid = %s::regclass",
        "select count(*) from pg_trigger where tgrelid = %s::regclass",
        "select relrowsecurity::int + relforcerowsecurity::int from pg_class where oid = %s::regclass",
        "select coalesce(cardinality(relacl), 0) from pg_class where oid = %s::regclass",
    ):
        old, new = (superuser.execute(catalogue.encode(), [partition(month_after(n))]).fetchone() for n in (0, 6))
        assert old == new, catalogue


async def test_housekeepers_that_start_together_are_harmless(
    alice: Session, admin: Session, key: ApiKey, superuser: psycopg.Connection
) -> None:
    """While usage is recorded, for the months that are being made too."""
    times = [month_after(n) + timedelta(days=1) for n in range(3, 9)]

    recording = asyncio.gather(*(record(alice, key, *times) for _ in range(20)))
    made = await asyncio.gather(*(monitor.ensure_partitions(admin, months_ahead=8) for _ in range(4)))
    await recording

    assert [sum(m.usage for m in made), sum(m.audit_log for m in made)] == [5, 5]
    assert places(superuser) == [(partition(at), at) for at in times for _ in range(20)]


async def test_a_row_on_its_way_when_its_month_is_made_arrives_there(
    alice: Session, admin: Session, key: ApiKey, database_url: str, superuser: psycopg.Connection
) -> None:
    at = month_after(4)

    def waiting() -> int:
        return superuser.execute(
            "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        ).rowcount

    with psycopg.connect(database_url) as in_the_way:
        in_the_way.execute("lock table usage_default in exclusive mode")
        recording = asyncio.create_task(record(alice, key, at))
        await until(lambda: waiting() == 1)
        making = asyncio.ensure_future(monitor.ensure_partitions(admin, months_ahead=4))
        await until(lambda: waiting() == 2)
    await recording

    assert (await making).usage == 1
    assert places(superuser) == [(partition(at), at)]


@pytest.mark.parametrize("months_ahead", [-1, 121])
async def test_how_far_ahead_has_a_limit(admin: Session, months_ahead: int) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="must be from 0 to 120"):
        await monitor.ensure_partitions(admin, months_ahead=months_ahead)


async def test_the_migrations_that_the_database_has_had_are_those_of_this_release(admin: Session) -> None:
    rows = await monitor.migrations(admin)

    assert {row.migration_id: row.migration_hash for row in rows} == migrate.expected()
    assert [row.migration_id for row in rows] == sorted(migrate.expected())
