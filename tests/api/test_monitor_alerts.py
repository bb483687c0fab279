"""Each alert, provoked once for real, and named with the right object; and what must not be one."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager

import msgspec
import psycopg
import pytest
import pytest_asyncio

from crafely.api import monitor_desk
from crafely.api.monitor_alerts import LIMITS, Alert, Limits, alerts, size_text, time_text
from crafely.db.session import Session
from crafely.store.monitor import Replica
from tests.db.statements import opened, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Nothing has to be waited for.
AT_ONCE = msgspec.structs.replace(LIMITS, transaction_seconds=0, lock_seconds=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(module_database: str) -> AsyncIterator[Session]:
    """What may look at the statistics, which are counted."""
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("create extension pg_stat_statements")
    async with opened(module_database, roles=["crafely_monitor"]) as database:
        yield database.session("crafely_monitor")


@pytest.fixture
def dba(module_database: str) -> Iterator[psycopg.Connection]:
    """The superuser, and two tables of the test's own."""
    with psycopg.connect(module_database, autocommit=True, application_name="dba") as connection:
        connection.execute(
            "create table owners (id int primary key); create table things (a int, owner_id int, c text)"
        )
        yield connection
        connection.execute("drop table things, owners; truncate monitor_samples; set role none")


async def found(session: Session, limits: Limits = LIMITS) -> dict[str, Alert]:
    """The alerts of this moment, by code; of one code there is one."""
    every = alerts(await monitor_desk.look(session), limits)
    by_code = {alert.code: alert for alert in every}
    assert len(by_code) == len(every), [str(alert) for alert in every]
    return by_code


async def test_a_new_database_needs_nobody(session: Session) -> None:
    assert await found(session) == {}


async def test_a_long_transaction(session: Session, dba: psycopg.Connection, module_database: str) -> None:
    with closing(psycopg.connect(module_database, autocommit=True, application_name="nightly")) as idle:
        idle.execute("begin; select 'a secret'")
        said = await found(session, AT_ONCE)
        assert list(said) == ["long_transaction"]
        alert = said["long_transaction"]
        pid = idle.info.backend_pid
        assert alert.object == f"pid {pid}"
        assert alert.message.startswith(f"pid {pid} (nightly, postgres) has had a transaction open for ")
        assert alert.message.endswith("is idle in transaction")
        assert f"pg_terminate_backend({pid})" in alert.action
        assert "secret" not in str(alert)
        # It has not lasted a minute.
        assert await found(session) == {}
        dba.execute("select pg_terminate_backend(%s, 5000)", [pid])
    assert await found(session, AT_ONCE) == {}


@contextmanager
def waiting(url: str, statement: str, application: str) -> Iterator[int]:
    """A connection that waits for a lock until the block has ended; gives its pid."""
    with psycopg.connect(url, autocommit=True, application_name=application) as connection:
        thread = threading.Thread(target=connection.execute, args=(statement.encode(),))
        thread.start()
        try:
            yield connection.info.backend_pid
        finally:
            connection.cancel_safe(timeout=10)
            thread.join(60)


def waits(dba: psycopg.Connection, pid: int) -> bool:
    found = dba.execute("select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", [pid]).fetchone()
    return found == (True,)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_lock_that_is_waited_for(session: Session, dba: psycopg.Connection, module_database: str) -> None:
    with psycopg.connect(module_database, application_name="in the way") as holder:
        holder.execute("lock table things in access exclusive mode")
        query = "select /* crafely:things/first */ count(*) from things"
        with waiting(module_database, query, "reader") as first, waiting(module_database, query, "second") as second:
            await until(lambda: waits(dba, first) and waits(dba, second))
            said = [one for one in alerts(await monitor_desk.look(session), AT_ONCE) if one.code == "blocked"]
            assert {one.object for one in said} == {"things"}
            assert {one.severity for one in said} == {"critical"}
            assert len(said) == 2
            for one, pid in zip(sorted(said, key=str), sorted([first, second], key=str), strict=True):
                assert one.message.startswith(f"pid {pid} (things/first) has waited ")
                assert " for AccessShareLock on things, which pid " in one.message
                assert f"pid {holder.info.backend_pid} (in the way, idle in transaction) holds" in one.message
                assert f"pg_terminate_backend({holder.info.backend_pid})" in one.action
            # Nobody has waited five seconds, and what is asked for less often is not shown.
            assert "blocked" not in {one.code for one in alerts(await monitor_desk.look(session))}
            holder.rollback()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_who_waits_behind_another_is_not_the_one_to_end(
    session: Session, dba: psycopg.Connection, module_database: str
) -> None:
    with psycopg.connect(module_database, application_name="reader") as holder:
        holder.execute("select from things")
        with waiting(module_database, "alter table things add x int", "migration") as middle:
            await until(lambda: waits(dba, middle))
            with waiting(module_database, "select from things", "last") as last:
                await until(lambda: waits(dba, last))
                desk = await monitor_desk.look(session)
                assert {(one.pid, one.blocking_pid) for one in desk.activity.locks} == {
                    (middle, holder.info.backend_pid),
                    (last, middle),
                }
                [alert] = [one for one in alerts(desk, AT_ONCE) if one.code == "blocked"]
                assert f"pg_terminate_backend({holder.info.backend_pid})" in alert.action


async def test_a_nearly_full_limit_of_connections(
    session: Session, dba: psycopg.Connection, module_database: str
) -> None:
    name = dba.info.dbname
    for limit, expected in ((100, None), (5, "warning"), (4, "critical")):
        with (
            psycopg.connect(module_database, application_name="greedy"),
            psycopg.connect(module_database, application_name="greedy"),
        ):
            dba.execute(f"alter database {name} connection limit {limit}".encode())
            try:
                said = await found(session)
            finally:
                dba.execute(f"alter database {name} connection limit -1".encode())
        if expected is None:
            assert said == {}
            continue
        alert = said["connections"]
        assert (alert.object, alert.severity) == (name, expected)
        assert alert.message.startswith(f"4 of {limit} connections to {name} are taken; most are greedy")


async def test_the_servers_own_limit_of_connections(session: Session) -> None:
    desk = await monitor_desk.look(session)
    full = msgspec.structs.replace(desk.overview, max_connections=desk.overview.connections)
    [alert] = alerts(msgspec.structs.replace(desk, overview=full))
    assert (alert.code, alert.object, alert.severity) == ("connections", "max_connections", "critical")


async def test_an_index_that_nobody_uses(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("create index idle on things (c)")
    # The other one is idle, too, but sql/agents/list_for_user.sql means to use it.
    dba.execute(
        "insert into monitor_samples (kind, name, bytes)"
        " values ('index', 'idle', 0), ('index', 'agents_user_id_created_at_id_idx', 0)"
    )
    # Not since yesterday.
    assert await found(session) == {}
    dba.execute("update monitor_samples set created_at = now() - interval '8 days'")
    said = await found(session)
    assert list(said) == ["unused_index"]
    assert said["unused_index"].object == "idle"
    assert "idle on things" in said["unused_index"].message
    assert said["unused_index"].action.endswith("drop index concurrently idle")
    # A foreign key leans on it now.
    dba.execute("drop index idle; create index idle on things (owner_id, c)")
    dba.execute("alter table things add foreign key (owner_id) references owners (id)")
    assert await found(session) == {}


async def test_two_indexes_that_are_alike(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("create index one on things (a); create index two on things (a)")
    said = await found(session)
    assert list(said) == ["duplicate_index"]
    assert said["duplicate_index"].object == "two"
    assert said["duplicate_index"].message.endswith("does nothing that one does not")
    dba.execute(said["duplicate_index"].action.encode())
    assert await found(session) == {}


async def test_an_index_that_a_file_names_may_be_superfluous(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("create index wide on agents (user_id, created_at desc, id desc, name) where deleted_at is null")
    try:
        alert = (await found(session))["duplicate_index"]
    finally:
        dba.execute("drop index wide")
    assert alert.object == "agents_user_id_created_at_id_idx"
    assert "though sql/agents/" in alert.message


async def test_a_foreign_key_without_an_index(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("alter table things add foreign key (owner_id) references owners (id)")
    said = await found(session)
    assert list(said) == ["missing_index"]
    assert said["missing_index"].object == "things_owner_id_fkey"
    assert "a delete in owners reads the whole table" in said["missing_index"].message
    dba.execute(said["missing_index"].action.encode())
    assert await found(session) == {}


async def test_an_index_that_is_half_made(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("insert into things (a) values (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        dba.execute("create unique index concurrently half on things (a)")
    said = await found(session)
    assert list(said) == ["invalid_index"]
    assert said["invalid_index"].object == "half"
    dba.execute(said["invalid_index"].action.encode())
    assert await found(session) == {}


def flush(dba: psycopg.Connection) -> None:
    """A session counts for itself, and tells the others when its next statement has ended."""
    dba.execute("select pg_stat_force_next_flush()")
    dba.execute("select")


async def test_bloat_and_dead_rows(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("alter table things set (autovacuum_enabled = off)")
    dba.execute("insert into things (a) select generate_series(1, 50000); create index numbers on things (a)")
    flush(dba)
    dba.execute("vacuum analyze things")
    limits = msgspec.structs.replace(LIMITS, dead_rows=10_000, bloat_bytes=500_000)
    assert await found(session, limits) == {}
    dba.execute("delete from things where a > 1000")
    flush(dba)
    said = await found(session, limits)
    assert list(said) == ["dead_rows"]
    assert said["dead_rows"].object == "things"
    assert said["dead_rows"].message == "49000 of 50000 rows of things are dead"
    dba.execute("vacuum analyze things")
    said = await found(session, limits)
    assert list(said) == ["bloated_index"]
    assert said["bloated_index"].object == "numbers"
    dba.execute(said["bloated_index"].action.encode())
    assert await found(session, limits) == {}


async def test_dead_rows_are_those_of_a_partition(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("""
        create table cut (a int) partition by list (a);
        create table cut_1 partition of cut for values in (1) with (autovacuum_enabled = off);
        insert into cut select 1 from generate_series(1, 100);
        delete from cut
    """)
    try:
        flush(dba)
        said = await found(session, msgspec.structs.replace(LIMITS, dead_rows=100))
    finally:
        dba.execute("drop table cut")
    assert [alert.object for alert in said.values()] == ["cut_1"]


GROWTH = """
    insert into monitor_samples (created_at, kind, name, bytes)
    select now() - make_interval(days => 10 - n), 'database', current_database(), 20000000 + n * %(bytes)s::bigint
    from generate_series(0, 10) n
    union all
    select now() - make_interval(days => 10 - n), 'table', 'things', n * 1000
    from generate_series(0, 10) n
    union all
    select now() - make_interval(days => 10 - n), 'table', 'owners', 5
    from generate_series(0, 10) n
"""


@pytest.mark.direct(reason="a setting of the database is seen by its next session")
async def test_a_disk_that_fills_up(session: Session, dba: psycopg.Connection, module_database: str) -> None:
    name = dba.info.dbname
    dba.execute(f"alter database {name} set crafely.storage_limit = '40 MB'".encode())
    dba.execute(GROWTH, {"bytes": 1_500_000})
    try:
        async with opened(module_database, roles=["crafely_monitor"]) as database:
            told = database.session("crafely_monitor")
            desk = await monitor_desk.look(told)
            assert desk.storage.bytes_per_day == pytest.approx(1_500_000)
            assert desk.storage.limit_bytes == 40 * 1024**2
            days = (40 * 1024**2 - desk.storage.bytes) / 1_500_000
            assert desk.storage.days_to_full == pytest.approx(days)
            growth = {one.name: one.bytes_per_day for one in desk.storage.data}
            assert (growth["things"], growth["owners"], growth["agents"]) == (1000, 0, None)
            alert = (await found(told))["disk_full"]
            assert alert.object == name
            assert f"{name} has {size_text(desk.storage.bytes)} of 40 MB and grows by 1.4 MB a day" in alert.message
            assert "most of it things" in alert.message
            # A tenth of that: it lasts.
            dba.execute("truncate monitor_samples")
            dba.execute(GROWTH, {"bytes": 150_000})
            assert await found(told) == {}
    finally:
        dba.execute(f"alter database {name} reset crafely.storage_limit".encode())


async def test_without_a_limit_there_is_no_day_of_it(session: Session, dba: psycopg.Connection) -> None:
    dba.execute(GROWTH, {"bytes": 1_000_000_000})
    desk = await monitor_desk.look(session)
    assert (desk.storage.limit_bytes, desk.storage.days_to_full) == (None, None)
    # An embedded server's disk has room for what is free on it.
    roomy = await monitor_desk.look(session, room=3_000_000_000)
    assert roomy.storage.days_to_full == pytest.approx(3)
    assert [alert.severity for alert in alerts(roomy)] == ["critical"]


async def test_a_trend_needs_a_day_of_samples(session: Session, dba: psycopg.Connection) -> None:
    dba.execute(GROWTH, {"bytes": 1_000_000})
    dba.execute("update monitor_samples set created_at = now() - (now() - created_at) * 0.09")
    desk = await monitor_desk.look(session)
    assert desk.storage.bytes_per_day is None
    assert {one.bytes_per_day for one in desk.storage.data} == {None}


async def test_a_slot_that_nobody_reads(session: Session, dba: psycopg.Connection) -> None:
    dba.execute("select pg_create_physical_replication_slot('forgotten', true)")
    try:
        dba.execute("insert into things (a) select generate_series(1, 1000)")
        limits = msgspec.structs.replace(LIMITS, lag_bytes=1000)
        assert await found(session) == {}
        alert = (await found(session, limits))["absent_replica"]
        assert (alert.object, alert.severity) == ("forgotten", "critical")
    finally:
        dba.execute(alert.action.partition(": ")[2].encode())
    assert await found(session, limits) == {}


@pytest.mark.parametrize(
    ("replica", "said"),
    [
        (Replica(name="r", state="streaming", synchronous=True, lag_bytes=5, lag_seconds=1, kept_bytes=0), None),
        (
            Replica(name="r", state="streaming", synchronous=False, lag_bytes=5000, lag_seconds=90, kept_bytes=0),
            "r is 4.9 kB and 90 s behind",
        ),
        (
            Replica(name="r", state="catchup", synchronous=None, lag_bytes=2 << 30, lag_seconds=None, kept_bytes=None),
            "r is 2.0 GB and 0 s behind",
        ),
    ],
)
async def test_a_replica_that_lags(session: Session, replica: Replica, said: str | None) -> None:
    desk = await monitor_desk.look(session)
    lagging = msgspec.structs.replace(desk.activity, replicas=[replica])
    messages = [alert.message for alert in alerts(msgspec.structs.replace(desk, activity=lagging))]
    assert messages == ([said] if said else [])


async def test_transactions_that_are_not_frozen_and_blocks_that_are_not_in_memory(session: Session) -> None:
    """What would take millions of them: the numbers are the database's own, the bounds are not."""
    limits = msgspec.structs.replace(LIMITS, freeze_factor=0, hit_rate=1.1, hit_blocks=0)
    desk = await monitor_desk.look(session)
    said = alerts(desk, limits)
    assert [(one.code, one.object) for one in said] == [
        ("wraparound", desk.overview.database),
        ("wraparound", desk.overview.database),
        ("cache_hit_rate", "tables"),
        ("cache_hit_rate", "indexes"),
    ]
    assert f"is {desk.overview.transaction_age} back" in said[0].message


async def test_sizes_and_times_as_people_write_them() -> None:
    sizes = [0, 1023, 1024, 10 * 1024, 1536 * 1024, 5 << 40, 5 << 60]
    assert [size_text(size) for size in sizes] == ["0 B", "1023 B", "1.0 kB", "10 kB", "1.5 MB", "5.0 TB", "5242880 TB"]
    assert [time_text(seconds) for seconds in (0.4, 119, 120, 7199, 7200)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
    ]
