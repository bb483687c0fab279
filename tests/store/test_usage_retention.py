"""Months of usage past their time: which of them go, what stays of them, and who waits meanwhile."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from crafely.db.session import Database, Identity, Session
from crafely.store import usage
from crafely.store.api_keys import ApiKey


def month_before(count: int) -> date:
    """The first day of the month so many before the current one (UTC)."""
    number = datetime.now(UTC).year * 12 + datetime.now(UTC).month - 1 - count
    return date(number // 12, number % 12 + 1, 1)


def partition(month: date) -> str:
    return f"usage_y{month:%Y}m{month:%m}"


def make(superuser: psycopg.Connection, month: date) -> None:
    """A month as it was made when it was the current one."""
    end = (month + timedelta(days=32)).replace(day=1)
    superuser.execute(
        SQL("create table {} partition of usage for values from ({}) to ({})").format(
            Identifier(partition(month)), Literal(f"{month} 00:00Z"), Literal(f"{end} 00:00Z")
        )
    )


def at(month: date, day: int = 10) -> str:
    return f"{month.replace(day=day)}T12:00:00Z"


async def record(session: Session, key: ApiKey, *times: str) -> None:
    records = [{"user_id": "alice", "api_key_id": key.id, "created_at": time, "cost": 1} for time in times]
    await usage.record(session, records=msgspec.Raw(msgspec.json.encode(records)))


def count(superuser: psycopg.Connection, table: str = "usage") -> int:
    row = superuser.execute(SQL("select count(*) from {}").format(Identifier(table))).fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
async def months(superuser: psycopg.Connection, meter: Session, key: ApiKey) -> list[date]:
    """The fifth, fourth and third month before this one, each with a record; and one of long ago without a month."""
    months = [month_before(n) for n in (5, 4, 3)]
    for month in months:
        make(superuser, month)
    await record(meter, key, *map(at, months), at(month_before(30)), at(month_before(2)), at(month_before(0), 1))
    return months


async def test_the_oldest_month_goes_first_and_those_that_are_kept_stay(
    months: list[date], admin: Session, alice: Session, superuser: psycopg.Connection
) -> None:
    dropped = []
    while (month := await usage.expired_month(admin, months_kept=3)) is not None:
        assert await usage.drop_month(admin, month=month)
        dropped.append(month)
    assert dropped == months[:2]
    # That of the month that is kept, and of the two that may yet get late records; and the one of no month.
    assert count(superuser) == 4
    assert count(superuser, "usage_default") == 1
    assert count(superuser, "usage_daily") == 6
    assert superuser.execute("select month from usage_drops order by 1").fetchall() == [(one,) for one in dropped]
    assert not await usage.drop_month(admin, month=months[0])
    asked = [month_before(6), *months]
    assert [await usage.is_dropped(alice, month=one) for one in asked] == [False, True, True, False]


async def test_the_trail_says_which_month_went_and_who_dropped_it(
    months: list[date], database: Database, superuser: psycopg.Connection
) -> None:
    housekeeping = database.session("crafely_admin", Identity("", request_id="housekeeping"))
    await usage.drop_month(housekeeping, month=months[0])
    query = "select actor_role, request_id, row_id, action, old from audit_log where table_name = 'usage'"
    assert superuser.execute(query).fetchall() == [
        ("crafely_admin", "housekeeping", partition(months[0]), "delete", {"month": str(months[0])})
    ]


@pytest.mark.parametrize("month", [month_before(2), month_before(0), month_before(-2), month_before(5).replace(day=2)])
async def test_a_month_that_may_yet_get_records_is_never_dropped(
    admin: Session, superuser: psycopg.Connection, month: date
) -> None:
    before = superuser.execute("select inhrelid from pg_inherits order by 1").fetchall()
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        await usage.drop_month(admin, month=month)
    assert superuser.execute("select inhrelid from pg_inherits order by 1").fetchall() == before


async def test_no_more_than_two_months_before_this_one_are_asked_for(admin: Session, months: list[date]) -> None:
    assert await usage.expired_month(admin, months_kept=2) == months[0]
    assert await usage.expired_month(admin, months_kept=5) is None


async def test_sums_of_a_dropped_month_are_no_difference_and_others_still_are(
    months: list[date], database_url: str, admin: Session, superuser: psycopg.Connection
) -> None:
    await usage.drop_month(admin, month=months[0])
    database = Database(database_url, size=1, pool_timeout=5, statement_timeout=10, roles=["crafely_backup"])
    await database.open()
    session = database.session("crafely_backup")

    async def differing() -> list[date]:
        found = await usage.reconcile(session, from_day=None, to_day=None, user_id=None, take=100)
        return [one.day.replace(day=1) for one in found]

    assert await differing() == []
    # A month that somebody dropped by hand, and a record that came to a month when it had gone.
    superuser.execute(SQL("drop table {}").format(Identifier(partition(months[1]))))
    superuser.execute(
        "insert into usage (user_id, api_key_id, created_at) select 'alice', id, %s from api_keys", [at(months[0])]
    )
    assert await differing() == [months[0], months[1]]
    await database.close()


async def test_dropping_locks_neither_keys_nor_other_months(
    months: list[date], superuser: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("select drop_usage_month(%s)", [months[0]])
        held = connection.execute(
            "select relation::regclass::text from pg_locks where pid = pg_backend_pid() and relation is not null"
            " and mode in ('AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock')"
        ).fetchall()
        connection.rollback()
    names = {name for (name,) in held}
    assert {"usage", "usage_default"} <= names
    # What is dropped has no name any more.
    assert not {"api_keys", partition(months[1]), partition(month_before(0))} & names
    assert count(superuser) == 6


async def test_who_is_at_work_is_not_waited_for_and_nobody_waits_long(
    months: list[date], admin: Session, alice: Session, key: ApiKey, superuser: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as reader:
        reader.execute("select count(*) from usage")
        dropping = asyncio.ensure_future(usage.drop_month(admin, month=months[0]))
        # Whoever comes meanwhile is answered, at the latest when the drop has given up, while the reader goes on.
        await asyncio.gather(*(record(alice, key, at(month_before(0), 1)) for _ in range(8)))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await dropping
    assert count(superuser) == 14
    assert await usage.drop_month(admin, month=months[0])
    assert count(superuser) == 13


async def test_a_drop_waits_for_a_moment_whatever_its_session_allows(months: list[date], database_url: str) -> None:
    with psycopg.connect(database_url) as reader, psycopg.connect(database_url) as dropper:
        reader.execute("select count(*) from usage")
        dropper.execute("set lock_timeout = 0; set statement_timeout = '5s'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            dropper.execute("select drop_usage_month(%s)", [months[0]])


async def test_of_two_that_drop_at_once_one_finds_nothing_to_do(
    months: list[date], admin: Session, superuser: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url) as other:
        other.execute("select drop_usage_month(%s)", [months[0]])
        assert not await usage.drop_month(admin, month=months[0])
    assert superuser.execute("select month from usage_drops").fetchall() == [(months[0],)]


async def test_months_go_while_others_write_and_read(
    months: list[date], admin: Session, alice: Session, key: ApiKey, superuser: psycopg.Connection
) -> None:
    stop = asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await record(alice, key, at(month_before(0), 1), at(month_before(1)))
            written += 2

    async def read() -> None:
        while not stop.is_set():
            rows: list[Any] = await usage.stats(
                alice,
                user_id="alice",
                from_time=datetime.now(UTC) - timedelta(days=90),
                to_time=datetime.now(UTC),
                group_by=["day"],
                take=100,
                skip=0,
            )
            assert rows

    others = [asyncio.create_task(work()) for work in (write, write, read)]
    try:
        for month in months:
            async with asyncio.timeout(60):
                while True:
                    try:
                        assert await usage.drop_month(admin, month=month)
                        break
                    except psycopg.errors.LockNotAvailable:
                        continue
            before = written
            async with asyncio.timeout(60):
                while written < before + 20:  # noqa: ASYNC110 - the others go on
                    await asyncio.sleep(0.01)
    finally:
        stop.set()
        await asyncio.gather(*others)
    assert count(superuser) == 3 + written
