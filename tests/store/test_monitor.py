"""Housekeeping of the months: nothing is refused for want of one, and nothing is lost when it is made."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest

from crafely.api import monitor_desk
from crafely.api.monitor_alerts import alerts
from crafely.db import embedded, migrate
from crafely.db.session import Session
from crafely.store import monitor, usage
from crafely.store.api_keys import ApiKey
from tests.db.statements import opened, until

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


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Session]:
    """What may look at the statistics."""
    async with opened(database_url, roles=["crafely_monitor"]) as database:
        yield database.session("crafely_monitor")


def samples(superuser: psycopg.Connection) -> list[tuple[str, str, str | None, int]]:
    found = superuser.execute("select kind, name, parent, bytes from monitor_samples order by kind, name, created_at")
    return found.fetchall()


async def take_sample(admin: Session) -> int:
    async with admin.transaction() as transaction:
        assert await monitor.take_turn(transaction)
        return await monitor.sample(transaction, take=1000)


async def test_a_sample_has_each_table_partition_and_index(admin: Session, superuser: psycopg.Connection) -> None:
    count = await take_sample(admin)

    found = {(kind, name): (parent, size) for kind, name, parent, size in samples(superuser)}
    assert len(found) == count
    assert {kind for kind, _ in found} == {"database", "table", "index"}
    month = partition(NOW)
    for kind, name, parent in [
        ("table", "agents", None),
        ("table", month, "usage"),
        ("index", "agents_pkey", None),
        # All months' together.
        ("index", "usage_pkey", None),
    ]:
        assert found[kind, name][0] == parent
    assert ("table", "usage") not in found
    assert not [name for kind, name in found if kind == "index" and name.startswith("usage_y")]
    sizes = (
        "select pg_table_size(%s), sum(pg_table_size(indexrelid))::bigint from pg_index where indrelid = %s::regclass"
    )
    own, indexes = superuser.execute(sizes, [month, month]).fetchone() or (0, 0)
    assert found["table", month][1] == own
    assert indexes > 0
    assert found["index", "usage_pkey"][1] >= 5 * 8192


async def test_an_hour_is_sampled_once(admin: Session, superuser: psycopg.Connection) -> None:
    assert await take_sample(admin) > 50
    # At the end of an hour another one begins between these two: then the second is right to sample.
    again = await take_sample(admin)
    hours = superuser.execute("select count(distinct date_trunc('hour', created_at)) from monitor_samples").fetchone()
    assert (again > 0) == (hours != (1,))
    superuser.execute("update monitor_samples set created_at = created_at - interval '1 hour'")
    assert await take_sample(admin) > 50


async def test_one_worker_takes_the_sample(admin: Session, superuser: psycopg.Connection) -> None:
    async def worker() -> int:
        async with admin.transaction() as transaction:
            if not await monitor.take_turn(transaction):
                return 0
            return await monitor.sample(transaction, take=1000)

    async with admin.transaction() as first:
        assert await monitor.take_turn(first)
        assert await worker() == 0
        taken = await monitor.sample(first, take=1000)
    assert taken == len(samples(superuser))


async def test_samples_are_forgotten(admin: Session, superuser: psycopg.Connection) -> None:
    superuser.execute(
        "insert into monitor_samples (created_at, kind, name, bytes)"
        " values (now() - interval '36 days', 'table', 'old', 1), (now() - interval '34 days', 'table', 'new', 1)"
    )
    assert await monitor.forget_samples(admin, older_than=NOW - timedelta(days=35)) == 1
    assert [name for _, name, _, _ in samples(superuser)] == ["new"]


async def test_nothing_that_is_locked_is_waited_for(
    desk: Session, admin: Session, superuser: psycopg.Connection, database_url: str
) -> None:
    """As when a migration holds every table of users: the desk answers, and leaves out what it cannot see."""
    with psycopg.connect(database_url) as holder:
        ours = holder.execute(
            "select format('%I', relname) from pg_class where relkind in ('r', 'p') and relname <> 'monitor_samples'"
            " and relnamespace = 'public'::regnamespace and not relispartition"
        ).fetchall()
        holder.execute(f"lock table {', '.join(name for (name,) in ours)} in access exclusive mode".encode())
        async with asyncio.timeout(20):
            sizes = await monitor.storage(desk, take=500)
            await monitor.indexes(desk, take=500)
            await monitor.missing_indexes(desk, take=500)
            await monitor.overview(desk)
            await monitor.queries(desk, sort="total", take=10)
            await monitor.statistics(desk)
            await monitor.connections(desk, take=10)
            await monitor.transactions(desk, take=10)
            await monitor.locks(desk, take=10)
            await monitor.replicas(desk, take=10)
            count = await take_sample(admin)
        assert {size.bytes for size in sizes if size.name in {"agents", "usage_default"}} == {None}
        assert [size.bytes is not None for size in sizes if size.name == "monitor_samples"] == [True]
        assert count > 50
        holder.rollback()
    assert {size.bytes is not None for size in await monitor.storage(desk, take=500)} == {True}


async def test_the_desk_reads_no_row_of_any_user(desk: Session, superuser: psycopg.Connection) -> None:
    readable = superuser.execute(
        "select relname from pg_class where relkind in ('r', 'p', 'v', 'm') and relnamespace = 'public'::regnamespace"
        " and has_any_column_privilege('crafely_monitor', oid, 'select, insert, update')"
        " or relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
        " and has_table_privilege('crafely_monitor', oid, 'delete, truncate')"
    ).fetchall()
    assert {name for (name,) in readable} == {"monitor_samples", "_yoyo_migration"}
    # Of a statement nothing but its file's name leaves the functions.
    superuser.execute("create extension pg_stat_statements")
    superuser.execute("select /* crafely:tests/some */ 'a secret'")
    superuser.execute("set application_name = 'tests'; begin; select 'a secret'")
    said = msgspec.json.encode(
        [
            await monitor.queries(desk, sort="total", take=500),
            await monitor.transactions(desk, take=500),
            await monitor.connections(desk, take=500),
        ]
    )
    superuser.execute("rollback")
    assert b"tests/some" in said
    assert b"secret" not in said


async def test_statements_are_counted_by_file_without_those_within_them(
    desk: Session, superuser: psycopg.Connection
) -> None:
    superuser.execute("""
        create schema elsewhere;
        create extension pg_stat_statements schema elsewhere;
        create function nested() returns bigint language plpgsql as $$
            declare n bigint;
            begin select /* crafely:tests/inner */ count(*) into n from pg_class; return n; end $$;
        create table counts (n int)
    """)
    superuser.execute("with /* crafely:tests/first */ n as (select nested()) select * from n")
    superuser.execute("insert /* crafely:tests/second_1 */ into counts values (1)")
    superuser.execute("insert /* crafely:tests/second_1 */ into counts values (1), (2)")

    # Closed to it, as any schema of a DBA's own.
    assert await monitor.queries(desk, sort="calls", take=500) == []
    assert (await monitor.statistics(desk)).since is None
    superuser.execute("grant usage on schema elsewhere to crafely_monitor")
    found = {one.statement: one for one in await monitor.queries(desk, sort="calls", take=500)}

    assert (found["tests/second_1"].calls, found["tests/second_1"].rows_per_call) == (2, 1.5)
    assert found["tests/first"].calls == 1
    assert "tests/inner" not in found
    assert found["tests/first"].max_ms == found["tests/first"].total_ms == found["tests/first"].mean_ms
    state = await monitor.statistics(desk)
    assert (state.loaded, state.installed, state.dropped) == (True, True, 0)


async def test_without_the_extension_nothing_is_counted_and_nothing_fails(desk: Session) -> None:
    assert await monitor.queries(desk, sort="total", take=10) == []
    assert await monitor.statistics(desk) == monitor.Statistics(
        allowed=True, loaded=True, installed=False, since=None, dropped=None
    )


async def test_on_a_server_that_does_not_load_it_or_forbids_it_nothing_fails(tmp_path: Path) -> None:
    """A server of the test's own: roles and what is loaded are the whole server's."""
    named = os.environ.get("CRAFELY_TEST_POSTGRES", "")
    programs = Path(named) if named and not named.startswith("postgres") else None
    options = {"fsync": "off", "shared_preload_libraries": ""}
    with embedded.running(tmp_path, postgres_bin=programs, options=options) as server:
        migrate.up(server.url)
        with psycopg.connect(server.url, autocommit=True) as dba:
            dba.execute("create extension pg_stat_statements")
            async with opened(server.url, roles=["crafely_monitor"]) as database:
                desk = database.session("crafely_monitor")
                found = await monitor.statistics(desk)
                assert (found.allowed, found.loaded, found.installed, found.since) == (True, False, True, None)
                assert await monitor.queries(desk, sort="total", take=10) == []
                told = await monitor_desk.look(desk)
                assert "does not load pg_stat_statements" in (told.queries.problem or "")

                dba.execute("revoke pg_monitor from crafely_monitor")
                told = await monitor_desk.look(desk)
                assert "lacks what pg_monitor may see" in (told.queries.problem or "")
                assert [alert.code for alert in alerts(told)] == ["no_statistics"]
