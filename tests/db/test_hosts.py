"""Several servers in one URL: the one that writes is found, remembered, and found again where it has moved."""

import asyncio
import os
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from crafely.db import migrate
from crafely.db.hosts import Hosts, reasons, undecided
from crafely.db.session import Database, DatabaseUnavailableError, Identity, Session, connect
from tests import standby
from tests.cli.conftest import new_folder
from tests.db.statements import opened, run, statement
from tests.standby import Node


@pytest.fixture(autouse=True)
def said_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


class There:
    """What libpq says of a connection."""

    def __init__(self, host: str, port: str = "5432", hostaddr: str = "") -> None:
        self.host, self.port, self.hostaddr = host.encode(), port.encode(), hostaddr.encode()


MEANT = "target_session_attrs=primary"


@pytest.mark.parametrize(
    ("url", "there", "hosts", "ports"),
    [
        (f"postgresql://u@a,b,c/db?{MEANT}", There("b"), "b,a,c", ",,"),
        (f"postgresql://u@a,b/db?{MEANT}", There("a"), "a,b", ","),
        (f"postgresql://u@a:5432,b:5433/db?{MEANT}", There("b", "5433"), "b,a", "5433,5432"),
        (f"postgresql://u@a:1,a:2/db?{MEANT}", There("a", "2"), "a,a", "2,1"),
        (f"host=/a,/b port=5432 {MEANT}", There("/b"), "/b,/a", "5432,5432"),
        ("host=/a,/b port=5432 target_session_attrs=read-write", There("/b"), "/b,/a", "5432,5432"),
        # Somebody else's order, and a server that is none of these.
        ("host=/a,/b port=5432 target_session_attrs=prefer-standby", There("/b"), "/a,/b", "5432"),
        ("host=/a,/b port=5432", There("/b"), "/a,/b", "5432"),
        (f"host=/a,/b port=5432 {MEANT}", There("/c"), "/a,/b", "5432,5432"),
        (f"host=/a port=5432 {MEANT}", There("/b"), "/a", "5432"),
    ],
)
def test_the_server_that_was_found_is_asked_first(url: str, there: There, hosts: str, ports: str) -> None:
    remembered = Hosts(url)
    remembered.found(there)  # type: ignore[arg-type]  # as much of a PGconn as is looked at
    parts = conninfo_to_dict(remembered.url)
    assert (parts["host"], parts["port"]) == (hosts, ports)


def test_addresses_are_turned_with_their_hosts() -> None:
    remembered = Hosts(f"host=a,b hostaddr=10.0.0.1,10.0.0.2 {MEANT}")
    remembered.found(There("b", "5432", "10.0.0.2"))  # type: ignore[arg-type]  # as above
    assert conninfo_to_dict(remembered.url) | {"host": "b,a", "hostaddr": "10.0.0.2,10.0.0.1"} == conninfo_to_dict(
        remembered.url
    )


@pytest.mark.parametrize(
    ("url", "undecided_"),
    [
        ("postgresql://a/db", False),
        ("postgresql://a,b/db", True),
        ("postgresql://a,b/db?target_session_attrs=any", True),
        ("postgresql://a,b/db?target_session_attrs=standby", True),
        ("hostaddr=10.0.0.1,10.0.0.2", True),
        ("postgresql://a,b/db?target_session_attrs=primary", False),
        ("postgresql://a,b/db?target_session_attrs=read-write", False),
    ],
)
def test_several_servers_and_which_is_meant(url: str, undecided_: bool) -> None:
    assert undecided(url) is undecided_


def test_the_environment_says_which_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    assert not undecided("postgresql://a,b/db")


def test_what_each_server_has_said_is_one_line() -> None:
    many = psycopg.OperationalError(
        "connection failed: the last\nMultiple connection attempts failed. All failures were:\n"
        "- host: 'a', port: None, hostaddr: '::1': connection is bad: refused\n\tIs it running?\n"
        "- host: '/b', port: '5432', hostaddr: None: connection failed: server is in hot standby mode"
    )
    assert reasons(many) == "connection is bad: refused; connection failed: server is in hot standby mode"
    assert reasons(psycopg.OperationalError("first\nthen\n\tadvice\n")) == "then"
    assert reasons(psycopg.OperationalError("")) == "OperationalError"


WRITE = "update agents set name = name returning id"
PID = "select pg_backend_pid()"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    with new_folder() as folder, standby.servers(folder) as nodes:
        migrate.up(standby.url(nodes[::-1], target_session_attrs="primary"))
        nodes[1].caught_up(nodes[0])
        yield nodes


async def host(database: Database) -> str:
    """Where a new connection leads."""
    connection = await database.connect("crafely_app")
    try:
        return connection.info.host
    finally:
        await connection.close()


async def test_a_server_that_is_silent_is_not_asked_again_and_again(nodes: list[Node]) -> None:
    a, b = nodes
    url = standby.url([b, a], target_session_attrs="primary", connect_timeout="120")
    # Less than one of these attempts.
    async with asyncio.timeout(60), opened(url, size=4, pool_timeout=30) as database:
        assert await host(database) == str(a.cluster.socket)
        with b.frozen():
            assert await host(database) == str(a.cluster.socket)
            # All of a pool's.
            alice = database.session("crafely_app", Identity("alice"))
            pids = await asyncio.gather(*(run(alice, "select pg_backend_pid(), pg_sleep(0.2)") for _ in range(4)))
            assert len({pid for [(pid, _)] in pids}) > 1


async def test_a_connection_to_a_server_that_takes_no_writes_is_given_up(nodes: list[Node]) -> None:
    async with opened(nodes[1].url, size=1) as database:
        alice = database.session("crafely_app", Identity("alice"))
        [(first,)] = await run(alice, PID)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await run(alice, WRITE)
        [(second,)] = await run(alice, PID)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with alice.transaction() as transaction:
                await transaction.execute(statement(WRITE), [])
        [(third,)] = await run(alice, PID)
        assert len({first, second, third}) == 3


async def test_a_channel_to_a_server_that_takes_no_writes_is_given_up(nodes: list[Node]) -> None:
    async with opened(nodes[1].url) as database:
        channel = database.channel("crafely_app")
        await channel.open()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await run(channel, WRITE)
        assert channel.lost
        await run(channel, PID)
        await channel.close()


async def test_who_finds_no_primary_waits_for_one_and_finds_it(nodes: list[Node]) -> None:
    """The last test of this module: its servers have changed places then."""
    a, b = nodes
    url = standby.url(nodes, target_session_attrs="primary")
    async with opened(url, pool_timeout=20) as database:
        alice = database.session("crafely_app", Identity("alice"))
        await run(alice, WRITE)
        a.kill()
        for order in ([a, b], [b, a]):
            for meant in ("primary", "read-write"):
                with pytest.raises(DatabaseUnavailableError, match="Connection refused") as refused:
                    async with opened(standby.url(order, target_session_attrs=meant)):
                        pass
                assert refused.value.passes
        b.promote()
        async with asyncio.timeout(60):
            while not await succeeds(alice):  # noqa: ASYNC110 - another process says when
                await asyncio.sleep(0.1)
        assert await host(database) == str(b.cluster.socket)
    with connect(url) as connection:
        assert connection.info.host == str(b.cluster.socket)
    assert migrate.up(url) == []


async def succeeds(alice: Session) -> bool:
    try:
        await run(alice, WRITE)
    except (psycopg.OperationalError, DatabaseUnavailableError):
        return False
    return True
