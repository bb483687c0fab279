"""Opening, roles, limits and round trips of the pools."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout

from crafely.db.begin import Begin
from crafely.db.query import WrongRoleError
from crafely.db.session import Database, DatabaseUnavailableError, Identity, Session
from tests.db.statements import opened, run, statement

ALICE = Identity("alice", request_id="test")
PASSWORD = "hunter2"


def changed(url: str, **parts: Any) -> str:
    return make_conninfo(**{**conninfo_to_dict(url), **parts})


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"host": "127.0.0.1", "port": "1"}, "cannot use the database at 127.0.0.1, database .*: .*refused"),
        ({"host": "/nowhere"}, "cannot use the database at /nowhere, database .*: .*No such file"),
        ({"dbname": "missing"}, 'cannot use the database at .*, database missing: .*"missing" does not exist'),
        ({"user": "stranger"}, "cannot use the database at .*stranger"),
    ],
)
async def test_a_database_that_cannot_be_used_is_one_line_without_the_password(
    database_url: str, parts: dict[str, str], problem: str
) -> None:
    with pytest.raises(DatabaseUnavailableError, match=problem) as caught:
        async with opened(changed(database_url, password=PASSWORD, **parts)):
            pass

    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url", [f"postgresql://u:{PASSWORD}@[::1/x", f"host={PASSWORD} nonsense", f"postgres:{PASSWORD}"]
)
async def test_a_url_that_is_none_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(DatabaseUnavailableError, match="not one that libpq understands: postgresql://") as caught:
        async with opened(url):
            pass

    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_a_login_that_may_not_take_the_role_on_is_refused(
    database_url: str, superuser: psycopg.Connection
) -> None:
    superuser.execute("drop role if exists crafely_test_login")
    superuser.execute(f"create role crafely_test_login login password '{PASSWORD}'".encode())
    try:
        with pytest.raises(DatabaseUnavailableError, match='permission denied to set role "crafely_app"'):
            async with opened(changed(database_url, user="crafely_test_login", password=PASSWORD)):
                pass
    finally:
        superuser.execute("drop role crafely_test_login")


async def test_a_connection_that_lost_its_role_on_the_way_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that ignores the options of a connection."""
    monkeypatch.setattr(Begin, "connection", lambda *_: {"options": ""})

    with pytest.raises(WrongRoleError, match=r"runs as \w+, not as crafely_app"):
        async with opened(database_url, pool_timeout=0.2):
            pass


async def test_a_statement_runs_only_as_a_role_that_its_header_names(database: Database) -> None:
    session = database.session("crafely_app", ALICE)
    of_admin = statement("select 1", role="crafely_admin")

    with pytest.raises(WrongRoleError, match="runs as crafely_admin, not as crafely_app"):
        await session.execute(of_admin, [])
    async with session.transaction() as tx:
        with pytest.raises(WrongRoleError, match="runs as crafely_admin, not as crafely_app"):
            await tx.execute(of_admin, [])
    assert (await database.session("crafely_admin").execute(of_admin, [])).rows == [(1,)]


@pytest.mark.parametrize("role", ["crafely_app", "crafely_auth", "crafely_meter", "crafely_admin"])
async def test_each_pool_runs_as_its_role_in_utc(database: Database, role: str) -> None:
    text = "select current_user::text, current_setting('timezone')"

    assert (await database.session(role).execute(statement(text, role), [])).rows == [(role, "UTC")]


@pytest.mark.direct(reason="behind a pooler there is no session to reset")
async def test_reset_goes_back_to_the_role_and_not_to_the_login(database: Database) -> None:
    async with database.pools["crafely_app"].connection() as connection:
        await connection.execute("reset role")
        cursor = await connection.execute("select current_user::text")
        assert await cursor.fetchone() == ("crafely_app",)


async def test_a_statement_that_takes_too_long_is_ended(database_url: str) -> None:
    async with opened(database_url, statement_timeout=0.2) as database:
        session = database.session("crafely_app", ALICE)
        with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
            await run(session, "select pg_sleep(30)")
        assert await run(session, "select current_user_id()") == [("alice",)]


async def test_who_waits_too_long_for_a_connection_is_told_and_the_next_one_is_served(database_url: str) -> None:
    async with opened(database_url, pool_timeout=0.1) as database:
        session = database.session("crafely_app", ALICE)
        async with session.transaction() as tx:
            await run(tx, "select 1")
            with pytest.raises(PoolTimeout):
                await run(session, "select 1")
        assert await run(session, "select 1") == [(1,)]


async def test_a_connection_that_the_server_ended_is_replaced(database_url: str, superuser: psycopg.Connection) -> None:
    async with opened(database_url) as database:
        session = database.session("crafely_app", ALICE)
        [(pid,)] = await run(session, "select pg_backend_pid()")
        superuser.execute("select pg_terminate_backend(%s, 5000)", [pid])

        with suppress(psycopg.OperationalError):
            await run(session, "select 1")

        [(now,)] = await run(session, "select pg_backend_pid()")
        assert now != pid


async def test_many_tasks_of_two_users_see_their_own_rows_only(alice: Session, bob: Session) -> None:
    insert = "insert into agents (name, instructions, user_id) values ($1, '', current_user_id()) returning name"

    async def story(session: Session, user: str, number: int) -> None:
        await run(session, insert, f"{user} {number}")
        seen = await run(session, "select name, user_id from agents")
        assert {owner for _, owner in seen} == {user}
        assert (f"{user} {number}", user) in seen

    await asyncio.gather(*(story(s, u, n) for n in range(100) for s, u in ((alice, "alice"), (bob, "bob"))))

    assert await run(alice, "select count(*) from agents") == [(100,)]
    assert await run(bob, "select count(*) from agents") == [(100,)]


async def test_the_observer_is_told_of_every_statement(database_url: str) -> None:
    told: list[tuple[str, bool]] = []
    async with opened(database_url, observe=lambda name, _, failed: told.append((name, failed))) as database:
        session = database.session("crafely_app", ALICE)
        await run(session, "select 1")
        with suppress(psycopg.Error):
            await run(session, "select 1 / 0")
        async with session.transaction() as tx:
            await run(tx, "select 1")

    assert told == [("tests/some", False), ("tests/some", True), ("tests/some", False)]


class Turns:
    """Stands between a client and the server, and counts how often the client spoke after the server had answered."""

    def __init__(self, url: str) -> None:
        self._server = conninfo_to_dict(url)
        self._client_speaks = False
        self._served: list[asyncio.Event] = []
        self.count = 0

    def heard(self, data: bytes) -> None:
        """Called with what the client has sent, before it is passed on."""

    @asynccontextmanager
    async def between(self) -> AsyncIterator[str]:
        """Gives the URL to connect to."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            yield make_conninfo(**{**self._server, "host": "127.0.0.1", "port": port, "sslmode": "disable"})
            # The client has hung up by now; the last bytes are on their way.
            for served in self._served:
                await served.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served.append(served := asyncio.Event())
        host, port = str(self._server["host"]), self._server.get("port") or 5432
        if host.startswith("/"):
            server_reader, server_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pass_on(reader, server_writer, from_client=True))
            both.create_task(self._pass_on(server_reader, writer, from_client=False))
        served.set()

    async def _pass_on(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, from_client: bool) -> None:
        while data := await source.read(65536):
            if from_client and not self._client_speaks:
                self.count += 1
            self._client_speaks = from_client
            if from_client:
                self.heard(data)
            to.write(data)
            await to.drain()
        to.close()


async def test_a_statement_with_its_identity_takes_one_round_trip(database_url: str) -> None:
    turns = Turns(database_url)
    async with turns.between() as url, opened(url) as database:
        session = database.session("crafely_app", ALICE)

        async def taken(*texts: str) -> int:
            before = turns.count
            for text in texts:
                await run(session, text)
            return turns.count - before

        first = await taken("select current_user_id()")
        assert first == 1
        assert await taken("select current_user_id()") == 1
        assert await taken(*["select current_user_id()"] * 5) == 5


async def test_a_transaction_of_three_statements_takes_four_round_trips(database_url: str) -> None:
    turns = Turns(database_url)
    async with turns.between() as url, opened(url) as database:
        session = database.session("crafely_app", ALICE)
        await run(session, "select 1")
        before = turns.count

        async with session.transaction() as tx:
            for _ in range(3):
                await run(tx, "select 1")

        assert turns.count - before == 4


async def test_connections_that_the_server_closed_fail_nobody(database_url: str, superuser: psycopg.Connection) -> None:
    async with opened(database_url, size=4) as database:
        session = database.session("crafely_app", ALICE)
        async with AsyncExitStack() as all_at_once:
            for _ in range(4):
                await run(await all_at_once.enter_async_context(session.transaction()), "select 1")
        ended = superuser.execute(
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
            " where application_name = 'crafely app' and datname = current_database()"
        ).fetchone()
        assert ended == (4,)
        assert [await run(session, "select 1") for _ in range(8)] == [[(1,)]] * 8
