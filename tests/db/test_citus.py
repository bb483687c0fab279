"""The sessions of CRAFELY_ENGINE=citus, on a PostgreSQL without it: what workers are told, and what holds anywhere.

What only a cluster can show is in tests/test_citus.py.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.sql import Literal

from crafely.db import embedded
from crafely.db.citus import ENGINES, CitusDatabase
from crafely.db.session import Database, Identity
from tests.db import test_session
from tests.db.statements import Rows, run
from tests.db.statements import statement as statement_of
from tests.db.test_session import ALICE, BOB, WHO
from tests.pooler import needs_pgbouncer, pooling

ROLES = ("crafely_app", "crafely_auth", "crafely_meter", "crafely_admin")
HOSTILE = [
    "o'brien", "''", "'; drop table agents; --", "\\", "\\'", "a\\", "\\\\'", "$1", "$$", "%s", "{}", ":user_id",
    "line\nfeed\r\ttab", "\x01\x1f\x7f", "\u2019\u02bc", "\U0001f40d", " ", "--", "/* ", "x" * 100_000,
]  # fmt: skip


@pytest.fixture
async def single(database_url: str) -> AsyncIterator[Database]:
    """Users' statements all run on one connection."""
    database = CitusDatabase(database_url, size=1, pool_timeout=5, statement_timeout=1, roles=ROLES)
    await database.open()
    yield database
    await database.close()


def test_the_setting_says_which_pools_there_are() -> None:
    assert {"postgresql": Database, "citus": CitusDatabase} == ENGINES


async def test_a_statement_is_in_a_transaction_that_tells_the_workers(
    single: Database, superuser: psycopg.Connection
) -> None:
    """Workers hear of «set local» in a transaction block, while the setting says 'local'."""
    session = single.session("crafely_app", ALICE)
    assert await run(session, "select current_setting('citus.propagate_set_commands')") == [("local",)]
    sent = traced(single)
    await run(session, WHO)
    texts = sent()

    assert texts[0] == "begin"
    assert texts[2] == "set local crafely.user_id = 'alice'"
    assert texts[3:] == [WHO, "commit"]


def traced(database: Database) -> Any:
    """Starts to note what psycopg executes; the call gives the texts."""
    texts: list[str] = []
    patch = pytest.MonkeyPatch()
    execute = psycopg.AsyncRawCursor.execute

    async def noted(self: Any, query: Any, *rest: Any, **options: Any) -> Any:
        text = query if isinstance(query, bytes) else query.as_bytes(self)
        texts.append(text.decode())
        return await execute(self, query, *rest, **options)

    patch.setattr(psycopg.AsyncRawCursor, "execute", noted)

    def told() -> list[str]:
        patch.undo()
        return texts

    return told


async def test_a_transaction_tells_the_workers_once(single: Database) -> None:
    session = single.session("crafely_app", ALICE)
    sent = traced(single)
    async with session.transaction() as tx:
        await run(tx, WHO)
        await run(tx, WHO)
    texts = sent()

    assert [texts[0], texts[2], *texts[3:]] == ["begin", "set local crafely.user_id = 'alice'", WHO, WHO, "commit"]


@pytest.mark.direct(reason="behind a pooler every transaction says something")
async def test_for_nobody_nothing_is_said(single: Database) -> None:
    sent = traced(single)
    await run(single.session("crafely_app"), WHO)

    assert sent() == [WHO]


async def test_a_role_within_a_transaction_is_not_told_to_workers(single: Database) -> None:
    who = statement_of("select current_user::text", "crafely_auth")
    sent = traced(single)
    async with single.session("crafely_app", ALICE).transaction() as tx:
        assert (await tx.execute_as("crafely_auth", who, ())).rows == [("crafely_auth",)]
        assert await run(tx, "select current_user::text") == [("crafely_app",)]

    assert not [text for text in sent() if text.startswith("set local") and "role" in text]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:20]))
async def test_a_user_is_who_he_says_whatever_his_name(single: Database, name: str) -> None:
    identity = Identity(name, "key", "request")
    session = single.session("crafely_app", identity)
    who = "select current_setting('crafely.user_id'), current_user_id()"

    assert await run(session, who) == [(name, name)]
    async with session.transaction() as tx:
        assert await run(tx, who) == [(name, name)]
    assert await run(single.session("crafely_app", BOB), who) == [("bob", "bob")]


async def test_a_name_with_a_zero_byte_is_refused(single: Database) -> None:
    with pytest.raises(psycopg.DataError):
        await run(single.session("crafely_app", Identity("a\0b")), WHO)

    assert await run(single.session("crafely_app", BOB), WHO) == [("bob", "key_b", "request-b")]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50))
@pytest.mark.parametrize("standard", ["on", "off"])
def test_a_literal_is_read_as_it_was_also_by_a_worker_of_old_habits(
    superuser: psycopg.Connection, standard: str, name: str
) -> None:
    superuser.execute(f"set standard_conforming_strings = {standard}; set escape_string_warning = off".encode())
    # As the coordinator passes the text on, written by a connection of ours that has the server's default.
    text = b"set crafely.user_id = " + Literal(name).as_bytes()
    superuser.execute(text)

    assert superuser.execute("select current_setting('crafely.user_id')").fetchone() == (name,)


@pytest.mark.parametrize(
    "what_alice_does",
    [
        test_session.ends_well,
        test_session.fails,
        test_session.is_refused_by_the_client,
        test_session.takes_too_long,
        test_session.is_cancelled,
        test_session.commits,
        test_session.rolls_back,
        test_session.fails_in_a_transaction,
        test_session.is_cancelled_in_a_transaction,
        test_session.loses_its_connection,
    ],
)
async def test_the_next_user_of_the_connection_inherits_nothing(
    single: Database, superuser: psycopg.Connection, what_alice_does: Any
) -> None:
    await what_alice_does(single.session("crafely_app", ALICE), superuser)

    assert await run(single.session("crafely_app"), f"{WHO}, pg_current_xact_id_if_assigned()::text") in (
        [(None, None, None, None)],
        [("", "", "", None)],
    )
    assert await run(single.session("crafely_app", BOB), WHO) == [("bob", "key_b", "request-b")]


async def test_a_stale_plan_is_made_anew(single: Database, superuser: psycopg.Connection) -> None:
    superuser.execute("create table notes (id int); grant select on notes to crafely_app; insert into notes values (1)")
    session = single.session("crafely_app", ALICE)

    async def read() -> Rows:
        return await run(session, "select * from notes")

    assert await read() == [(1,)]
    superuser.execute("alter table notes alter id type text; alter table notes add more int default 7")
    assert await read() == [("1", 7)]
    assert await run(session, WHO) == [("alice", "key_a", "request-a")]


async def test_what_fails_at_the_commit_fails(single: Database, superuser: psycopg.Connection) -> None:
    superuser.execute(
        "create table notes (id int unique deferrable initially deferred); grant insert, select on notes to crafely_app"
    )
    session = single.session("crafely_app", ALICE)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await run(session, "insert into notes values (1), (1) returning id")

    assert superuser.execute("select count(*) from notes").fetchone() == (0,)
    assert await run(session, WHO) == [("alice", "key_a", "request-a")]


async def test_many_at_once_are_each_who_they_are(database_url: str) -> None:
    database = CitusDatabase(database_url, size=4, pool_timeout=30, statement_timeout=10, roles=["crafely_app"])
    await database.open()

    async def one(number: int) -> None:
        session = database.session("crafely_app", Identity(f"user {number % 7}", f"key {number}", f"request {number}"))
        assert await run(session, WHO) == [(f"user {number % 7}", f"key {number}", f"request {number}")]

    try:
        await asyncio.gather(*(one(number) for number in range(300)))
    finally:
        await database.close()


@needs_pgbouncer
async def test_behind_a_pooler_each_transaction_says_everything(server: embedded.Server, database_url: str) -> None:
    with pooling(server.url, default_pool_size=1) as pooler:
        options: dict[str, Any] = {
            "size": 4,
            "pool_timeout": 30,
            "statement_timeout": 10,
            "pooler": pooler.url(database_url),
        }
        database = CitusDatabase(database_url, roles=ROLES, **options)
        await database.open()
        try:
            for identity in [ALICE, BOB, Identity("o'brien \\"), ALICE]:
                session = database.session("crafely_app", identity)
                who = (identity.user_id, identity.api_key_id, identity.request_id)
                assert await run(session, WHO) == [who]
                async with session.transaction() as tx:
                    assert await run(tx, f"{WHO}, current_setting('citus.propagate_set_commands')") == [(*who, "local")]
            assert await run(database.session("crafely_app"), WHO) == [("", "", "")]
        finally:
            await database.close()
