"""What a standby answers, and what it leaves to the primary."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crafely.db import migrate, replica
from crafely.db.query import Statement, statements
from crafely.db.replica import Replica
from crafely.db.session import Database, Identity
from crafely.store import monitor, threads
from tests import standby
from tests.cli.conftest import new_folder
from tests.db.statements import opened, statement, until
from tests.standby import Node

ALICE, BOB = Identity("alice"), Identity("bob")
LATE = datetime(9999, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """A primary that is migrated, with two users' threads, and its standby. It waits for nobody who reads there."""
    with new_folder() as folder, standby.servers(folder, max_standby_streaming_delay="0") as nodes:
        migrate.up(nodes[0].url)
        with nodes[0].looking() as connection:
            connection.execute("insert into threads (id, user_id, name) values ('a', 'alice', 'hers')")
            connection.execute("insert into threads (id, user_id, name) values ('b', 'bob', 'his')")
        nodes[1].caught_up(nodes[0])
        yield nodes


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a little of the log may take longer than anybody waits for it."""
    monkeypatch.setattr(replica, "WAIT", 60.0)


@pytest.fixture
async def primary(nodes: list[Node]) -> AsyncIterator[Database]:
    async with opened(nodes[0].url, roles=["crafely_app", "crafely_auth"], size=2) as database:
        yield database


def of(primary: Database, url: str, **options: Any) -> Replica:
    async def position() -> int:
        return (await monitor.position(primary.session("crafely_auth"))).bytes

    settings = {"position": position, "lag": 5.0, "size": 2, "statement_timeout": 10.0, "observe": lambda *_: None}
    return Replica(url, primary, **{**settings, **options})


@pytest.fixture
async def used(primary: Database, nodes: list[Node]) -> AsyncIterator[Replica]:
    """A standby that is used."""
    used = of(primary, nodes[1].url)
    await used.open()
    assert used.reason == ""
    yield used
    await used.close()


async def names(db: Any, user_id: str) -> list[str]:
    rows = await threads.list_for_user(db, user_id=user_id, before=LATE, before_id="", take=9, skip=0)
    return [row.name for row in rows]


async def asked(used: Replica, text: str, **settings: Any) -> Any:
    """What it gives for a statement that is declared to be read there."""
    given = statement(text)
    given = msgspec.structs.replace(given, header=msgspec.structs.replace(given.header, replica=True), **settings)
    return await used.execute("crafely_app", ALICE, given, ())


async def test_row_level_security_holds_there(primary: Database, used: Replica) -> None:
    primary.standby = used
    assert await names(primary.session("crafely_app", ALICE), "alice") == ["hers"]
    assert await names(primary.session("crafely_app", ALICE), "bob") == []
    assert await names(primary.session("crafely_app", BOB), "bob") == ["his"]
    assert (used.answered, used.passed) == (3, 0)
    # Of the identity nothing stays on the connection.
    assert (await asked(used, "select current_setting('crafely.user_id')")).rows == [("alice",)]
    assert await names(primary.session("crafely_app"), "alice") == []


async def test_a_statement_that_does_not_say_so_runs_on_the_primary(primary: Database, used: Replica) -> None:
    primary.standby = used
    here = "select pg_is_in_recovery()"
    assert (await asked(used, here)).rows == [(True,)]
    assert (await primary.session("crafely_app", ALICE).execute(statement(here), ())).rows == [(False,)]
    async with primary.session("crafely_app", ALICE).transaction() as transaction:
        assert await names(transaction, "alice") == ["hers"]
    assert used.answered == 1


async def test_it_can_write_nothing_there(used: Replica) -> None:
    assert await asked(used, "delete from threads returning id") is None


async def test_what_fails_there_is_left_to_the_primary(used: Replica) -> None:
    assert await asked(used, "select 1 / 0") is None
    assert await used.execute("crafely_meter", ALICE, statement("select 1"), ()) is None
    assert used.reason == ""


async def test_a_statement_that_takes_too_long_is_not_run_twice(primary: Database, nodes: list[Node]) -> None:
    short = of(primary, nodes[1].url, statement_timeout=0.2)
    await short.open()
    with pytest.raises(psycopg.errors.QueryCanceled):
        await asked(short, "select pg_sleep(60)")
    await short.close()


async def test_what_replay_is_in_the_way_of_is_left_to_the_primary(used: Replica, nodes: list[Node]) -> None:
    reading = asyncio.create_task(asked(used, "select pg_sleep(60), id from threads"))
    active = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'"
    await until(lambda: nodes[1].ask(active) == 1)
    with nodes[0].looking() as connection:
        # Locked there as here.
        connection.execute("alter table threads alter column name set storage extended")
    assert await reading is None


def test_behind_is_how_long_something_has_been_missing(primary: Database, nodes: list[Node]) -> None:
    one = of(primary, nodes[1].url)

    def behind(now: float, *, written: int, replayed: int) -> float:
        one.replayed = replayed
        return one._behind(written, now)

    assert behind(10, written=100, replayed=100) == 0
    # Nothing is written for an hour.
    assert behind(3610, written=100, replayed=100) == 0
    assert behind(3611, written=200, replayed=100) == 0
    assert behind(3613, written=300, replayed=100) == 2
    # It has some of what was missing, and not all: it is as far behind as the next piece is old.
    assert behind(3614, written=400, replayed=250) == 1
    assert behind(3615, written=400, replayed=399) == 1
    assert behind(3616, written=400, replayed=400) == 0
    # It stands still for days: the first piece counts, and not all are kept.
    for second in range(5000):
        assert behind(4000 + second, written=500 + second, replayed=400) == second
    assert len(one._missing) <= replica._SAMPLES
    # Another primary, whose log is shorter.
    assert behind(9999, written=450, replayed=450) == 0


async def test_what_another_standby_has_replayed_does_not_count(
    primary: Database, used: Replica, nodes: list[Node]
) -> None:
    """Of several behind one URL: each says itself what it has, together with its answer."""
    primary.standby = used
    nodes[1].pause()
    try:
        with nodes[0].looking() as connection:
            connection.execute("insert into threads (id, user_id, name) values ('c', 'carol', 'new')")
        used.replayed = 2**60
        assert await names(primary.session("crafely_app", Identity("carol")), "carol") == ["new"]
        assert (used.answered, used.passed) == (0, 1)
    finally:
        nodes[1].resume()


async def test_what_the_primary_has_not_is_not_read(primary: Database, nodes: list[Node]) -> None:
    async def position() -> int:
        return 1000

    ahead = of(primary, nodes[1].url, position=position)
    await ahead.open()
    assert ahead.reason == "it has what the primary has not"
    assert await asked(ahead, "select 1") is None
    await ahead.close()


async def test_without_the_primary_nothing_is_read(primary: Database, used: Replica) -> None:
    def lost() -> Awaitable[int]:
        raise psycopg.OperationalError("the connection was lost")

    used._position = lost
    await used._look()
    assert used.reason == ""
    assert await asked(used, "select 1") is None


async def test_of_several_the_ones_that_are_there_are_read(primary: Database, nodes: list[Node]) -> None:
    """libpq chooses: among the hosts of the URL, as its target_session_attrs says."""
    several = of(primary, standby.url(nodes, target_session_attrs="standby", load_balance_hosts="random"))
    await several.open()
    assert several.reason == ""
    assert (await asked(several, "select pg_is_in_recovery()")).rows == [(True,)]
    await several.close()


async def test_why_it_is_left_alone_says_no_password(primary: Database, nodes: list[Node]) -> None:
    gone = of(primary, make_conninfo(nodes[1].url, password="hunter2", dbname="nowhere"))
    await gone.open()
    assert 'database "nowhere" does not exist' in gone.reason
    assert "hunter2" not in gone.reason
    await gone.close()


def test_every_list_says_that_it_may_be_read_there() -> None:
    """And nothing that serves a change, or must see a revocation at once."""
    declared = {name for name, one in statements.items() if one.header.replica}
    users = {name for name, one in statements.items() if {"crafely_app", "crafely_admin"} & {*one.header.roles}}

    def is_list(one: Statement) -> bool:
        return one.name.rpartition("/")[2].startswith(("list_", "get")) and one.name in users

    lists = {name for name, one in statements.items() if is_list(one)}
    assert lists - declared == {"encryption_keys/list_all", "idempotency_keys/get"}
    assert declared <= users
    assert not declared & {"api_keys/lookup", "user_subscriptions/rate_limits", "audit_log/head", "monitor/position"}
