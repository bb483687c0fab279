"""What the desk says of indexes: what could go, what is missing, and that nothing is named that somebody leans on."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import pytest_asyncio

from crafely.db.session import Session
from crafely.store import monitor
from crafely.store.monitor import IndexUse
from tests.db.statements import opened

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(module_database: str) -> AsyncIterator[Session]:
    """What may look at the statistics."""
    async with opened(module_database, roles=["crafely_monitor"]) as database:
        yield database.session("crafely_monitor")


@pytest.fixture
def tables(module_database: str) -> Iterator[psycopg.Connection]:
    """Two tables of the test's own, in a database that is shared: gone with all their indexes when it ends."""
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("""
            create table owners (id int primary key, code int not null, unique (code, id));
            create table things (a int, b int, c text, owner_id int, owner_code int)
        """)
        yield connection
        connection.execute("drop table things, owners; truncate monitor_samples; reset all")


async def seen(desk: Session) -> dict[str, IndexUse]:
    return {index.name: index for index in await monitor.indexes(desk, take=500)}


async def test_of_the_schema_itself_nothing_is_superfluous_or_missing(desk: Session) -> None:
    indexes = await seen(desk)
    assert len(indexes) > 30
    assert {name for name, index in indexes.items() if index.covered_by is not None or not index.is_valid} == set()
    assert await monitor.missing_indexes(desk, take=500) == []


# What is made, in order, and of what which other index says that it is superfluous.
PAIRS = {
    "the younger of two alike": ("create index o on things (a); create index y on things (a)", {"y": "o"}),
    "three alike": (
        "create index o on things (a); create index y on things (a); create index z on things (a)",
        {"y": "o", "z": "o"},
    ),
    "one that another begins with": ("create index o on things (a); create index y on things (a, b)", {"o": "y"}),
    "the widest is named": (
        "create index o on things (a); create index y on things (a, b); create index z on things (a, b, c)",
        {"o": "z", "y": "z"},
    ),
    "not one that another ends with": ("create index o on things (b); create index y on things (a, b)", {}),
    "not of another order": ("create index o on things (a); create index y on things (a desc, b)", {}),
    "not of another class": ("create index o on things (c); create index y on things (c text_pattern_ops)", {}),
    "not of another kind": ("create index o on things (a); create index y on things using hash (a)", {}),
    "two hashes": (
        "create index o on things using hash (a); create index y on things using hash (a)",
        {"y": "o"},
    ),
    "not of other rows": ("create index o on things (a) where b > 1; create index y on things (a)", {}),
    "of the same rows": (
        "create index o on things (a) where b > 1; create index y on things (a, c) where  b>1",
        {"o": "y"},
    ),
    "the same expression": (
        "create index o on things (lower(c)); create index y on things ( lower( c ), a)",
        {"o": "y"},
    ),
    "not another expression": ("create index o on things (lower(c)); create index y on things (upper(c))", {}),
    "not where a column would be lost": (
        "create index o on things (a) include (c); create index y on things (a, b)",
        {},
    ),
    "where the column is there": (
        "create index o on things (a) include (b); create index y on things (a, b)",
        {"o": "y"},
    ),
    "what is unique stays": ("create index o on things (a); create unique index y on things (a)", {"o": "y"}),
    "unique ones are not begun with": (
        "create unique index o on things (a); create unique index y on things (a, b)",
        {},
    ),
    "unique in another way": (
        "create unique index o on things (a); create unique index y on things (a) nulls not distinct",
        {},
    ),
    "not of a kind that is in no order": (
        "create index o on things using brin (a); create index y on things using brin (a, b)",
        {},
    ),
    "a constraint's own stays, although it is the younger": (
        "create unique index o on things (a); alter table things add primary key (a)",
        {"o": "things_pkey"},
    ),
    "what a foreign key points to stays, although another is a constraint's": (
        """create unique index o on owners (code);
        alter table things add foreign key (owner_code) references owners (code);
        create index t on things (owner_code);
        alter table owners add unique (code)""",
        {},
    ),
    "a constraint's own stays": ("create unique index y on owners (id)", {"y": "owners_pkey"}),
    "what a foreign key points to stays": (
        """create unique index o on owners (code); create unique index y on owners (code);
        alter table things add foreign key (owner_code) references owners (code);
        create index t on things (owner_code)""",
        None,
    ),
}


@pytest.mark.parametrize("case", PAIRS)
async def test_an_index_is_superfluous(desk: Session, tables: psycopg.Connection, case: str) -> None:
    made, expected = PAIRS[case]
    tables.execute(made.encode())

    indexes = await seen(desk)
    covered = {name: index.covered_by for name, index in indexes.items() if index.covered_by is not None}

    if expected is None:
        # One of the two carries the key: the other goes.
        pointed = tables.execute(
            "select conindid::regclass::text from pg_constraint where contype = 'f' and conrelid = 'things'::regclass"
        ).fetchone()
        assert pointed is not None
        expected = {({"o", "y"} - {pointed[0]}).pop(): pointed[0]}
    assert covered == expected
    # And what is advised can be done, in that order or any other.
    for name in expected:
        tables.execute(indexes[name].drop_it.encode())


async def test_an_index_of_a_partitioned_table_is_one(desk: Session, tables: psycopg.Connection) -> None:
    tables.execute("create index twin on usage (api_key_id, created_at desc, id desc)")

    indexes = await seen(desk)

    assert {name: index.covered_by for name, index in indexes.items() if index.covered_by} == {
        "twin": "usage_api_key_id_created_at_id_idx"
    }
    assert not [name for name in indexes if name.startswith("usage_y")]
    tables.execute(indexes["twin"].drop_it.encode())


async def test_what_a_constraint_or_a_foreign_key_leans_on_is_never_called_unused(
    desk: Session, tables: psycopg.Connection
) -> None:
    tables.execute("""
        alter table things add foreign key (owner_code, owner_id) references owners (code, id);
        create index key on things (owner_id, owner_code, a);
        create index by_id on things (owner_id, a);
        create index by_code on things (owner_code, a);
        create unique index only_one on things (b);
        create index idle on things (c);
    """)
    tables.execute(
        "insert into monitor_samples (kind, name, bytes, created_at)"
        " select 'index', indexrelid::regclass::text, 0, '2026-01-01Z' from pg_index"
        " where indrelid in ('things'::regclass, 'owners'::regclass)"
    )

    indexes = await seen(desk)
    mine = {name: i for name, i in indexes.items() if i.table in {"things", "owners"}}

    assert {name: index.kept_for for name, index in mine.items()} == {
        "owners_pkey": "constraint",
        "owners_code_id_key": "constraint",
        "key": "foreign key",
        # An owner's id is unique: it finds the rows of the key as well.
        "by_id": "foreign key",
        "by_code": None,
        "only_one": "unique",
        "idle": None,
    }
    assert {name for name, index in mine.items() if index.unused_since is not None} == {"by_code", "idle"}
    assert mine["idle"].unused_since == datetime(2026, 1, 1, tzinfo=UTC)


async def test_what_has_been_used_or_was_never_sampled_is_not_called_unused(
    desk: Session, tables: psycopg.Connection
) -> None:
    tables.execute("create index used on things (a); create index fresh on things (b)")
    tables.execute("insert into monitor_samples (kind, name, bytes) values ('index', 'used', 0)")
    assert (await seen(desk))["used"].unused_since is not None

    tables.execute("set enable_seqscan = off")
    tables.execute("select from things where a = 1")
    tables.execute("select pg_stat_force_next_flush()")
    tables.execute("select 1")

    indexes = await seen(desk)
    assert (indexes["used"].scans, indexes["used"].unused_since) == (1, None)
    assert (indexes["fresh"].scans, indexes["fresh"].unused_since) == (0, None)


async def test_an_index_is_unused_since_it_was_counted_anew(desk: Session, tables: psycopg.Connection) -> None:
    tables.execute("create index idle on things (a)")
    tables.execute(
        "insert into monitor_samples (kind, name, bytes, created_at) values ('index', 'idle', 0, '2026-01-01Z')"
    )
    tables.execute("select pg_stat_reset()")
    since = (await seen(desk))["idle"].unused_since
    assert since is not None
    assert datetime.now(UTC) - since < timedelta(hours=1)


# Indexes of things, and whether a foreign key (owner_code, owner_id) to owners (code, id) is then without one.
SERVES = {
    "": True,
    "(owner_code, owner_id)": False,
    "(owner_id, owner_code, a)": False,
    "(owner_id, a)": False,
    "(owner_code, a)": True,
    "(a, owner_code, owner_id)": True,
    "(owner_code, owner_id) where owner_id is not null": False,
    "(owner_code, owner_id) where a is not null": True,
    "(owner_code, owner_id) where owner_id > 5": True,
    "(owner_code, owner_id) where owner_id is null": True,
    "(lower(c), owner_code, owner_id)": True,
    "using brin (owner_code, owner_id)": True,
    "(owner_code) include (owner_id)": True,
}


@pytest.mark.parametrize("index", SERVES)
async def test_a_foreign_key_lacks_an_index(desk: Session, tables: psycopg.Connection, index: str) -> None:
    tables.execute("alter table things add foreign key (owner_code, owner_id) references owners (code, id)")
    if index:
        tables.execute(f"create index on things {index}".encode())

    found = await monitor.missing_indexes(desk, take=10)

    if not SERVES[index]:
        assert found == []
        return
    [missing] = found
    assert (missing.name, missing.table, missing.referenced, missing.columns) == (
        "things_owner_code_owner_id_fkey",
        "things",
        "owners",
        ["owner_code", "owner_id"],
    )
    tables.execute(missing.create_it.encode())
    assert await monitor.missing_indexes(desk, take=10) == []


async def test_a_partitioned_table_lacks_one_index(desk: Session, tables: psycopg.Connection) -> None:
    tables.execute("""
        create table cut (owner_id int references owners (id)) partition by list (owner_id);
        create table cut_1 partition of cut for values in (1);
        create table cut_2 partition of cut for values in (2)
    """)
    try:
        [missing] = await monitor.missing_indexes(desk, take=10)
        assert (missing.name, missing.table) == ("cut_owner_id_fkey", "cut")
        tables.execute(missing.create_it.encode())
        assert await monitor.missing_indexes(desk, take=10) == []
    finally:
        tables.execute("drop table cut")


async def test_an_index_that_was_left_half_made_is_invalid(desk: Session, tables: psycopg.Connection) -> None:
    tables.execute("insert into things (a) values (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        tables.execute("create unique index concurrently half on things (a)")
    assert {name for name, index in (await seen(desk)).items() if not index.is_valid} == {"half"}


async def test_bloat_is_what_is_left_of_rows_that_are_gone(desk: Session, tables: psycopg.Connection) -> None:
    tables.execute("insert into things (a, c) select n, 'thing ' || n from generate_series(1, 100000) n")
    tables.execute("create index numbers on things (a); create index names on things (c)")
    tables.execute("vacuum analyze things")
    full = await seen(desk)
    # What is tightly packed has hardly any: the estimate is rather too generous.
    assert [full[name].bloat_bytes for name in ("numbers", "names")] == [0, 0]

    tables.execute("delete from things where a > 5000")
    tables.execute("vacuum analyze things")

    for name in ("numbers", "names"):
        index = (await seen(desk))[name]
        assert index.bytes == full[name].bytes
        assert index.bloat_bytes is not None
        assert 0.92 * index.bytes < index.bloat_bytes < 0.97 * index.bytes
        tables.execute(index.rebuild_it.encode())
    again = await seen(desk)
    assert [again[name].bloat_bytes for name in ("numbers", "names")] == [0, 0]
