"""Filled over HTTP, backed up, destroyed, restored: everything is there, and goes on."""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from crafely.cli import commands
from crafely.cli.audit import verify
from crafely.db import embedded, migrate, scratch
from crafely.db.backup import folder
from crafely.db.backup.folder import Manifest
from crafely.store import audit_log, usage
from tests.api.conftest import Api, Client, Server, introduce, serving
from tests.auth.conftest import Signer
from tests.cli.conftest import environment
from tests.conftest import ENCRYPTION_KEY
from tests.db.rows import ODD, everything
from tests.db.statements import opened
from tests.torture.load import Load

SECONDS = 60


@pytest.fixture
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database in another cluster, whose transactions are counted anew."""
    programs = environment().get("CRAFELY_POSTGRES_BIN")
    with (
        tempfile.TemporaryDirectory(prefix="crafely-test-", ignore_cleanup_errors=True) as folder,
        embedded.running(
            Path(folder), postgres_bin=Path(programs) if programs else None, options={"fsync": "off"}
        ) as server,
    ):
        yield server.url


Backup = Callable[..., Awaitable[Manifest]]


@pytest.fixture
def backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backup:
    """Runs a command on a database beside what the event loop does. Gives what the newest backup says of itself."""
    place = tmp_path / "backups"
    for name in [name for name in os.environ if name.startswith("CRAFELY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", ENCRYPTION_KEY)
    monkeypatch.setenv("CRAFELY_BACKUP_DIR", str(place))

    async def run(url: str, *arguments: str) -> Manifest:
        monkeypatch.setenv("CRAFELY_DATABASE_URL", url)
        assert await asyncio.to_thread(commands.run, ["backup", *arguments]) == 0
        newest = folder.newest(place)
        assert newest is not None
        assert newest.manifest is not None
        return newest.manifest

    return run


async def use_everything(api: Api) -> dict[str, str]:
    """Writes to every table that clients can write to. Gives what must be there later: paths, and what they answer."""
    package = await api.admin.post("/v1/packages", {"name": "Pro", "price": "9.90", "features": ["a", "b"]})
    subscription = await api.alice.post("/v1/user-subscriptions", {"packageId": package["id"]})
    agent = await api.alice.post(
        "/v1/agents",
        {"name": "Reviewer", "instructions": ODD.replace("\x01", ""), "context": "known", "tools": [{"a": 1.5}]},
        headers={"Idempotency-Key": "once"},
    )
    thread = await api.alice.post(
        "/v1/threads", {"name": "monday", "agentId": agent["id"], "instructions": "Keep it short."}
    )
    gone = await api.bob.post("/v1/agents", {"name": "gone", "instructions": "i"})
    await api.bob.delete(f"/v1/agents/{gone['id']}")
    key = await api.alice.post("/v1/api-keys", {"name": "app", "permissions": ["usage:write"]})
    await api.alice.post(
        "/v1/usage",
        [
            {"provider": "p", "model": "m", "tokensIn": 3, "cost": "0.000000000001", "eventId": f"e{n}"}
            for n in range(9)
        ],
    )
    paths = [
        "/v1/me",
        f"/v1/packages/{package['id']}",
        f"/v1/user-subscriptions/{subscription['id']}",
        f"/v1/agents/{agent['id']}?include=threads",
        f"/v1/threads/{thread['id']}",
        f"/v1/api-keys/{key['id']}",
        "/v1/usage",
        "/v1/usage/daily",
        "/v1/audit-log",
    ]
    return {path: (await api.alice.get(path)).raw.decode() for path in paths}


async def seal(url: str) -> str:
    """Seals the trail, and gives the head of its chain after it was verified."""
    async with opened(url, roles=["crafely_admin", "crafely_backup"]) as database:
        while (await audit_log.seal(database.session("crafely_admin"))).row_count:
            pass
        report = await verify(database.session("crafely_backup"))
        head = await audit_log.head(database.session("crafely_backup"))
    assert report.findings == []
    assert report.unsealed.row_count == 0
    assert head is not None
    return head.digest


async def test_everything_comes_back_and_goes_on(
    server: embedded.Server, signer: Signer, another: str, backup: Backup
) -> None:
    with scratch.database(server.url) as url:
        migrate.up(url)
        async with serving(url, signer) as first:
            api = await introduce(first)
            answers = await use_everything(api)
        with psycopg.connect(url, autocommit=True) as owner:
            # As housekeeping notes a month that it has dropped.
            owner.execute("insert into usage_drops (month) values ('2020-01-01')")
        head = await seal(url)
        wanted = everything(url)
        made = await backup(url, "create")
        assert made.audit_head == head
    # The database is gone. So would be its server.
    await backup(server.url, "restore", "--into", another)

    found = everything(another)
    empty = {name for name, rows in wanted.items() if not rows and "_y2" not in name and not name.endswith("_default")}
    assert empty == set(), "a table that is not written to"
    seals = wanted.pop("audit_seals")
    # The chain says that it goes on in another cluster.
    assert set(seals) < set(found["audit_seals"])
    del found["audit_seals"]
    assert found == wanted

    async with serving(another, signer) as second:
        alice = second.with_token(api.alice.token)
        for path, answer in answers.items():
            assert (await alice.get(path)).raw.decode() == answer, path
        await go_on(second, alice)
    await seal(another)
    async with opened(another, roles=["crafely_backup"]) as database:
        report = await verify(database.session("crafely_backup"), head)
        assert report.findings == []
        differences = await usage.reconcile(
            database.session("crafely_backup"), from_day=None, to_day=None, user_id=None, take=10
        )
        assert differences == []


async def go_on(server: Server, alice: Client) -> None:
    """What was there is known, and what is new fits to it."""
    agent = (await alice.get("/v1/agents"))["data"][0]
    again = {"name": "Reviewer", "instructions": ODD.replace("\x01", ""), "context": "known", "tools": [{"a": 1.5}]}
    same = await alice.post("/v1/agents", again, headers={"Idempotency-Key": "once"})
    assert same["id"] == agent["id"]
    await alice.patch(f"/v1/agents/{agent['id']}", {"context": "news"})
    (line,) = (await alice.post("/v1/usage", {"provider": "p", "model": "m", "eventId": "e1"}))["data"]
    assert line["status"] == "duplicate"
    (line,) = (await alice.post("/v1/usage", {"provider": "p", "model": "m", "tokensIn": 1}))["data"]
    assert line["status"] == "recorded"
    await alice.post("/v1/threads", {"name": "tuesday", "agentId": agent["id"]})
    rows = server.sql("select id from audit_log order by created_at, id")
    assert len(set(rows)) == len(rows)
    assert rows == sorted(rows)


async def test_a_backup_under_load_is_of_one_moment(
    database_url: str, empty_database: str, signer: Signer, backup: Backup
) -> None:
    async with serving(database_url, signer, rate_limit_user="off") as server:
        callers = [await server.caller(f"user_{n}", "*") for n in range(4)]
        address = f"http://{server.address[0]}:{server.address[1]}"
        async with Load(address, [caller.token for caller in callers], clients=4) as load:
            await load.more(200, SECONDS)
            before = load.acknowledged
            made = await backup(database_url, "create")
            await load.more(50, SECONDS)
        after = len(load.told)
    await backup(database_url, "restore", "--into", empty_database)
    async with opened(empty_database, roles=["crafely_backup"]) as database:
        session = database.session("crafely_backup")
        assert await usage.reconcile(session, from_day=None, to_day=None, user_id=None, take=10) == []
    with psycopg.connect(empty_database) as connection:
        row = connection.execute("select count(*), count(distinct metadata ->> 'marker') from usage").fetchone()
        events = connection.execute("select count(*) from usage where event_id is not null").fetchone()
        assert events == connection.execute("select count(*) from usage_events").fetchone()
    assert row is not None
    # What was acknowledged before it began is in it; what came after it is not.
    assert before <= row[1] <= row[0] < after
    assert made.rows > row[0]
