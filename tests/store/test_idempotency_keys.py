"""Kept answers: one for a user and a key, held by one transaction at a time, forgotten in portions."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from crafely.db.query import Executor, WrongRoleError
from crafely.db.session import Database, Identity, Session
from crafely.db.transaction import Part
from crafely.store import idempotency_keys, packages
from crafely.store.idempotency_keys import IdempotencyKey
from tests.db.statements import run, statement

KEPT = IdempotencyKey(fingerprint="f" * 64, status=201, location="/v1/x", etag='"1"', body='{"a": 1}')


async def keep(session: Executor, user_id: str, key: str) -> int:
    return await idempotency_keys.create(
        session,
        user_id=user_id,
        key=key,
        fingerprint=KEPT.fingerprint,
        status=KEPT.status,
        location=KEPT.location,
        etag=KEPT.etag,
        body=KEPT.body,
    )


async def test_an_answer_is_kept_for_its_user_alone(alice: Session, bob: Session) -> None:
    assert await keep(alice, "alice", "order 1") == 1
    assert await idempotency_keys.get(alice, user_id="alice", key="order 1") == KEPT
    for session, user_id, key in ((alice, "alice", "order 2"), (bob, "bob", "order 1"), (bob, "alice", "order 1")):
        assert await idempotency_keys.get(session, user_id=user_id, key=key) is None
    assert await keep(bob, "bob", "order 1") == 1
    with pytest.raises(psycopg.errors.UniqueViolation):
        await keep(alice, "alice", "order 1")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await keep(bob, "alice", "order 2")


async def test_a_key_is_held_by_one_transaction_and_nobody_waits_for_it(alice: Session, bob: Session) -> None:
    async with alice.transaction() as first:
        assert await idempotency_keys.lock(first, user_id="alice", key="k")
        assert await idempotency_keys.lock(first, user_id="alice", key="k")
        async with alice.transaction() as second:
            assert not await idempotency_keys.lock(second, user_id="alice", key="k")
            assert await idempotency_keys.lock(second, user_id="alice", key="other")
        async with bob.transaction() as third:
            assert await idempotency_keys.lock(third, user_id="bob", key="k")
    async with alice.transaction() as later:
        assert await idempotency_keys.lock(later, user_id="alice", key="k")


async def test_the_oldest_are_forgotten_some_at_a_time(
    database: Database, alice: Session, superuser: psycopg.Connection
) -> None:
    for number in range(7):
        await keep(alice, "alice", f"key {number}")
        superuser.execute(
            "update idempotency_keys set created_at = now() - %s * interval '1 hour' where key = %s",
            [number, f"key {number}"],
        )
    admin = database.session("crafely_admin")
    older_than = datetime.now(UTC) - timedelta(hours=2.5)
    assert await idempotency_keys.forget(admin, older_than=older_than, take=3) == 3
    left = superuser.execute("select key from idempotency_keys order by 1").fetchall()
    assert left == [("key 0",), ("key 1",), ("key 2",), ("key 3",)]
    assert await idempotency_keys.forget(admin, older_than=older_than, take=3) == 1
    assert await idempotency_keys.forget(admin, older_than=older_than, take=3) == 0
    assert superuser.execute("select from idempotency_keys").rowcount == 3


async def test_housekeeping_reads_no_answer(database: Database, alice: Session) -> None:
    await keep(alice, "alice", "k")
    admin = database.session("crafely_admin", Identity("alice"))
    for query in ("select body from idempotency_keys", "select key from idempotency_keys"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await admin.execute(statement(query, "crafely_admin"), [])


async def test_a_statement_of_another_role_is_part_of_the_transaction(
    alice: Session, superuser: psycopg.Connection
) -> None:
    class GivenUpError(Exception):
        pass

    async def both(name: str, *, give_up: bool) -> None:
        async with alice.transaction() as transaction:
            part = Part(transaction, "crafely_admin")
            async with part.transaction() as same:
                await packages.create(
                    same,
                    name=name,
                    description=None,
                    price=Decimal(1),
                    features=[],
                    interval="month",
                    active=True,
                    rate_limit=None,
                )
            # Around it all runs as before.
            assert await run(transaction, "select current_user::text") == [("crafely_app",)]
            await keep(transaction, "alice", name)
            if give_up:
                raise GivenUpError

    with pytest.raises(GivenUpError):
        await both("one", give_up=True)
    assert superuser.execute("select from packages").rowcount == 0
    await both("two", give_up=False)
    assert superuser.execute("select name from packages").fetchall() == [("two",)]
    trail = superuser.execute("select actor_user_id, actor_role from audit_log where table_name = 'packages'")
    assert trail.fetchall() == [("alice", "crafely_admin")]


async def test_a_part_runs_only_what_its_role_may(alice: Session) -> None:
    with pytest.raises(WrongRoleError):
        async with alice.transaction() as transaction:
            await idempotency_keys.get(Part(transaction, "crafely_admin"), user_id="alice", key="k")
