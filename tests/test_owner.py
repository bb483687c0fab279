"""The schema belongs to an ordinary login: no superuser is needed, neither to migrate nor to serve."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.db import embedded, migrate
from crafely.db.session import Database, Identity
from crafely.store import agents, api_keys, audit_log, monitor, usage

# Later than the months that the migrations make.
LATE = datetime.now(UTC) + timedelta(days=150)


@pytest.fixture
def owned_database(server: embedded.Server, empty_database: str) -> Iterator[tuple[str, str]]:
    """A migrated database: its URL as its owner, who may create roles and no more, and as the superuser."""
    parts: dict[str, Any] = conninfo_to_dict(empty_database)
    with psycopg.connect(server.url, autocommit=True) as connection:
        # The roles of other tests' databases were made by the superuser: the owner needs the right to grant them.
        connection.execute("create role crafely_owner login createrole")
        for role in ("app", "auth", "meter", "admin", "monitor", "backup", "encryption"):
            connection.execute(
                f"do $$ begin create role crafely_{role}; exception when duplicate_object then null; end $$".encode()
            )
            connection.execute(f"grant crafely_{role} to crafely_owner with admin option".encode())
        connection.execute(f"alter database {parts['dbname']} owner to crafely_owner".encode())
    url = make_conninfo(**{**parts, "user": "crafely_owner"})
    migrate.up(url)
    yield url, empty_database
    migrate.down(url, steps=None)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("reassign owned by crafely_owner to current_user; drop owned by crafely_owner")
        connection.execute("drop role crafely_owner")


async def test_an_owner_that_is_no_superuser_migrates_serves_and_keeps_house(owned_database: tuple[str, str]) -> None:
    url, superuser = owned_database
    database = Database(url, size=2, pool_timeout=5, statement_timeout=10)
    await database.open()
    alice = database.session("crafely_app", Identity("alice", request_id="owned"))
    await agents.create(alice, id="agnt_1", user_id="alice", name="a", instructions="i", tools=None, context=None)
    key = await api_keys.create(
        alice,
        user_id="alice",
        key_id="k",
        hashed_key="h",
        name=None,
        prefix=None,
        permissions=[],
        expires_at=None,
        rate_limit=None,
    )
    record = {"user_id": "alice", "api_key_id": key.id, "created_at": LATE, "cost": "1.5", "currency": "usd"}
    encoded = msgspec.Raw(msgspec.json.encode([record]))
    assert [r.status for r in await usage.record(database.session("crafely_meter"), records=encoded)] == ["recorded"]

    def stored() -> tuple[Any, ...] | None:
        with psycopg.connect(superuser) as connection:
            return connection.execute(
                "select (select count(*) from usage_default), (select count(*) from usage),"
                " (select array_agg((actor_user_id, table_name, action)::text order by id) from audit_log)"
            ).fetchone()

    changes = ["(alice,agents,insert)", "(alice,api_keys,insert)"]
    assert stored() == (1, 1, changes)
    # The row waits in the default partition, where forced row-level security would hide it even from the owner.
    made = await monitor.ensure_partitions(database.session("crafely_admin"), months_ahead=6)
    assert made.usage == 3
    assert stored() == (0, 1, changes)
    assert (await audit_log.seal(database.session("crafely_admin"))).row_count <= 2
    assert await audit_log.drop_month(database.session("crafely_admin"), months_kept=2) is None
    await database.close()

    # Append-only for the owner, too, short of taking row-level security away, which the seals would tell.
    with psycopg.connect(url, autocommit=True) as owner:
        for statement in (
            "update audit_log set action = 'delete'",
            "delete from audit_log",
            "update audit_seals set row_count = 0",
            "delete from audit_seals",
        ):
            assert owner.execute(statement).rowcount == 0, statement
    assert stored() == (0, 1, changes)
