"""Somebody who has data, somebody who is after it, and what must be as it was when he is done."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psycopg
import pytest_asyncio
from yarl import URL

from tests.api.conftest import Answer, Client, Server, check, serving
from tests.attack import report
from tests.auth.conftest import Signer

# Stands in every text that is the victim's: no answer to anybody else may have it.
MARK = "of-the-victim"


def pytest_terminal_summary() -> None:
    if report.PRINT:
        report.print_all()


# Status, headers by their names in small letters, body.
Raw = tuple[int, Mapping[str, str], bytes]


@dataclass
class World:
    """A server, the victim with one row of each noun, and the attacker: a user like any other, with every permission
    that users have. ``ids`` are those of the victim's rows, by noun; ``package`` is everybody's.
    """

    server: Server
    http: aiohttp.ClientSession
    victim: Client
    mallory: Client
    admin: Client
    package: str
    ids: dict[str, str] = field(default_factory=dict)
    etag: str = ""

    async def strike(
        self,
        attack: str,
        method: str,
        path: str,
        *,
        by: Client | None,
        expect: Collection[int] = (),
        described: bool = True,
        **options: Any,
    ) -> Answer:
        """One try. The answer must be described, no failure, and nothing of the victim's.

        Takes the attack's name for the report, the path as it stands, who tries (None: without credentials), the
        statuses of which the answer must have one, whether the description knows the path at all, and what aiohttp's
        request takes.
        """
        headers = {"Authorization": f"Bearer {by.token}"} if by is not None else {}
        headers = {**headers, **options.pop("headers", {})}
        async with self.http.request(method, URL(path, encoded=True), headers=headers, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
        report.tried(attack, answer.status)
        where = f"{attack}: {method} {path[:200]}: {answer.status} {answer.raw[:500]!r}"
        assert answer.status < 500, where
        assert not expect or answer.status in expect, where
        assert MARK.encode() not in answer.raw, where
        if described:
            check(method, path.partition("?")[0], answer)
        return answer

    async def raw(self, attack: str, sent: bytes, *, end: bool = False) -> list[Raw]:
        """Sends bytes (and says that there are no more), and gives every answer until the server closes the connection.

        Which it does after what is no HTTP; of others the last one asks for it.
        """
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(*self.server.address)
            try:
                writer.write(sent)
                if end:
                    writer.write_eof()
                received = await reader.read()
            except ConnectionResetError:
                received = b""
            finally:
                writer.close()
        answers = split(received)
        for status, _, body in answers:
            assert status < 500, (sent[:300], body)
            assert MARK.encode() not in body
        report.tried(attack, " ".join(str(status) for status, _, _ in answers) or "closed")
        return answers


def split(received: bytes) -> list[Raw]:
    """Each answer on a connection."""
    answers: list[Raw] = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
        length = int(headers.get("content-length", 0))
        assert line.startswith("HTTP/1.1 "), line
        answers.append((int(line.split()[1]), headers, received[:length]))
        received = received[length:]
    return answers


async def settle(server: Server, http: aiohttp.ClientSession) -> World:
    """The victim and what is the victim's, by way of the API, and the others."""
    victim = await server.caller("victim", "*")
    admin = await server.caller("administrator", "*", "admin")
    package = await admin.post("/v1/packages", {"name": "everybody's", "price": "1"})
    world = World(server, http, victim, await server.caller("mallory", "*"), admin, package["id"])
    agent = await victim.post("/v1/agents", {"name": MARK, "instructions": MARK, "tools": [MARK], "context": MARK})
    thread = {"name": MARK, "agentId": agent["id"], "storageId": MARK, "instructions": MARK, "model": MARK}
    world.etag = agent.headers["ETag"]
    usage = {"provider": MARK, "model": MARK, "type": MARK, "metadata": {MARK: MARK}, "eventId": MARK, "cost": "1"}
    world.ids = {
        "agents": agent["id"],
        "threads": (await victim.post("/v1/threads", thread))["id"],
        "api-keys": (await victim.post("/v1/api-keys", {"name": MARK}))["id"],
        "user-subscriptions": (await victim.post("/v1/user-subscriptions", {"packageId": package["id"]}))["id"],
        "usage": (await victim.post("/v1/usage", usage))["data"][0]["id"],
    }
    server.sql("create table canary (id int primary key); insert into canary values (1)")
    return world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_database: str) -> AsyncIterator[World]:
    """One for the tests of a module; afterwards what is not the attacker's is as it was."""
    with psycopg.connect(module_database, autocommit=True) as connection:
        # Not on every server that the tests run on.
        available = connection.execute("select 1 from pg_available_extensions where name = 'pg_stat_statements'")
        if available.fetchone():
            connection.execute("create extension pg_stat_statements")
    async with (
        serving(module_database, Signer("ins_a")) as server,
        aiohttp.ClientSession("http://{}:{}".format(*server.address), auto_decompress=False) as http,
    ):
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        world = await settle(server, http)
        before = state(server)
        yield world
        assert state(server) == before
        # What fails in no request at all: a timer, a task that nobody waits for.
        assert failures == []


def state(server: Server) -> dict[str, str]:
    """What no attack may change: every row of the victim's, what is everybody's, and all that a schema is made of."""
    tables = server.sql(
        "select relname, exists (select from pg_attribute where attrelid = c.oid and attname = 'user_id')"
        " from pg_class c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition"
    )
    conditions = {table: "user_id = 'victim'" for table, owned in tables if owned}
    conditions |= {"canary": "true", "packages": "name = 'everybody''s'"}
    assert {"agents", "api_keys", "threads", "usage", "user_subscriptions"} <= set(conditions)
    queries = {
        name: f"select to_jsonb(t) - 'last_used_at' from {name} t where {condition}"  # noqa: S608 - of the catalogue
        for name, condition in conditions.items()
    }
    hashes = "select md5(string_agg(x::text, ' ' order by x::text)) from ({}) x"
    return {name: str(server.sql(hashes.format(query))) for name, query in {**queries, **SCHEMA}.items()}


SCHEMA = {
    "relations": "select relname, relkind, relacl, relrowsecurity, relforcerowsecurity, relowner from pg_class"
    " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'S', 'f') and not relispartition",
    "columns": "select relname, attname, atttypid, attacl, attnotnull from pg_attribute a"
    " join pg_class c on c.oid = attrelid where relnamespace = 'public'::regnamespace and not relispartition"
    " and relkind in ('r', 'p') and attnum > 0",
    "functions": "select proname, prosrc, proacl, prosecdef from pg_proc where pronamespace = 'public'::regnamespace",
    "policies": "select * from pg_policies",
    "triggers": "select tgname, tgenabled from pg_trigger",
    "roles": "select rolname, rolsuper, rolbypassrls from pg_roles where rolname ~ '^crafely_[a-z]+$'",
    "settings": "select * from pg_db_role_setting where setrole <> 0",
}
