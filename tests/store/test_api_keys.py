"""API keys: made, found, changed, revoked, touched."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest

from crafely.auth.lookups import lookups
from crafely.db.channel import Channel
from crafely.db.query import Result, Statement
from crafely.db.session import Database, Identity, Session
from crafely.store import api_keys, usage
from crafely.store.api_keys import ApiKey, KeyRecord

END = datetime.max.replace(tzinfo=UTC)
EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def auth(database: Database) -> Session:
    return database.session("crafely_auth")


@pytest.fixture
def stored(superuser: psycopg.Connection) -> Callable[[], dict[str, Any]]:
    """The only row, as it is stored."""

    def stored() -> dict[str, Any]:
        (row,) = superuser.execute("select to_jsonb(k) from api_keys k").fetchone() or ({},)
        return dict(row)

    return stored


async def test_a_key_comes_back_as_it_was_made_and_without_its_hash(alice: Session) -> None:
    made = await api_keys.create(
        alice,
        user_id="alice",
        key_id="key-1",
        hashed_key="$argon2id$secret",
        name="laptop",
        prefix="crf_live_",
        permissions=["agents:read", 'odd "one", {x}'],
        expires_at=EXPIRY,
        rate_limit=60,
    )

    assert made.id.startswith("key_")
    assert (made.key_id, made.name, made.prefix) == ("key-1", "laptop", "crf_live_")
    assert (made.permissions, made.expires_at, made.rate_limit) == (["agents:read", 'odd "one", {x}'], EXPIRY, 60)
    assert (made.active, made.last_used_at) == (True, None)
    assert await api_keys.get(alice, id=made.id, user_id="alice") == made
    assert "argon2id" not in repr(made)


async def test_a_public_half_is_used_once(alice: Session, bob: Session, key: ApiKey, make_key: Any) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        await make_key(bob, "bob", key.key_id)

    assert caught.value.diag.constraint_name == "api_keys_key_id_key"


async def test_a_key_is_nobody_elses(alice: Session, bob: Session, key: ApiKey) -> None:
    for session, user_id in ((bob, "bob"), (bob, "alice"), (alice, "bob")):
        assert await api_keys.get(session, id=key.id, user_id=user_id) is None
        assert await api_keys.update(session, id=key.id, user_id=user_id, changes=msgspec.Raw(b'{"name":"x"}')) is None
        assert await api_keys.revoke(session, id=key.id, user_id=user_id) is None
        assert await api_keys.rehash(session, id=key.id, user_id=user_id, hashed_key="x") == 0
    assert await api_keys.get(alice, id=key.id, user_id="alice") == key


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"name": None, "rate_limit": 5},
        {"permissions": [], "expires_at": EXPIRY},
        {"rate_limit": None},
        {},
    ],
)
async def test_only_what_changes_names_changes(alice: Session, key: ApiKey, changes: dict[str, Any]) -> None:
    raw = msgspec.Raw(msgspec.json.encode({**changes, "active": True, "user_id": "bob"}))

    after = await api_keys.update(alice, id=key.id, user_id="alice", changes=raw)

    assert after is not None
    assert after == msgspec.structs.replace(key, **changes, updated_at=after.updated_at)


async def test_a_revoked_key_stays_and_stays_revoked(alice: Session, key: ApiKey, make_key: Any) -> None:
    other = await make_key(alice, "alice", "other")
    await usage.record(alice, records=msgspec.Raw(msgspec.json.encode([{"user_id": "alice", "api_key_id": key.id}])))

    assert await api_keys.revoke(alice, id=key.id, user_id="alice") == key.key_id
    assert await api_keys.revoke(alice, id=key.id, user_id="alice") == key.key_id
    changed = await api_keys.update(alice, id=key.id, user_id="alice", changes=msgspec.Raw(b'{"active": true}'))

    assert changed is not None
    assert not changed.active
    for active, ids in ((True, [other.id]), (False, [key.id])):
        rows = await api_keys.list_by_active(
            alice, user_id="alice", active=active, before=END, before_id="", take=10, skip=0
        )
        assert [row.id for row in rows] == ids


async def test_keys_are_looked_up_for_any_user_revoked_ones_too(
    auth: Session, alice: Session, key: ApiKey, key_of_bob: ApiKey
) -> None:
    await api_keys.revoke(alice, id=key.id, user_id="alice")

    found = await api_keys.lookup(auth, key_ids=[key.key_id, "unknown", key_of_bob.key_id])

    assert {(r.id, r.user_id, r.active, r.hashed_key) for r in found} == {
        (key.id, "alice", False, "hash"),
        (key_of_bob.id, "bob", True, "hash"),
    }
    assert len(found) == 2
    assert await api_keys.lookup(auth, key_ids=[]) == []


async def test_callers_who_look_up_at_once_share_statements_and_get_each_his_own_key(
    database: Database, superuser: psycopg.Connection, key: ApiKey, key_of_bob: ApiKey
) -> None:
    asked: list[list[str]] = []

    class Noting(Channel):
        async def execute(self, statement: Statement, values: Sequence[Any]) -> Result:
            asked.append(values[0])
            return await super().execute(statement, values)

    together = lookups(database, queue=1000)
    for channel in together._channels:
        channel.__class__ = Noting
    await together.open()
    wanted = [key.key_id, "unknown", key_of_bob.key_id] * 100
    found = await asyncio.gather(*map(together.ask, wanted))
    await together.close()

    assert [row.key_id if row is not None else "unknown" for row in found] == wanted
    assert {(row.id, row.user_id) for row in found if row is not None} == {(key.id, "alice"), (key_of_bob.id, "bob")}
    # A few statements for 300 callers, and no key twice in one of them.
    assert 3 <= len(asked) <= 10
    assert all(sorted(key_ids) == sorted(set(wanted)) for key_ids in asked)


async def test_the_hash_never_shows_where_a_record_is_printed(auth: Session, key: ApiKey) -> None:
    [record] = await api_keys.lookup(auth, key_ids=[key.key_id])

    assert isinstance(record, KeyRecord)
    assert "hash" not in f"{record!r} {record}"


async def test_a_hash_is_replaced(auth: Session, alice: Session, key: ApiKey) -> None:
    assert await api_keys.rehash(alice, id=key.id, user_id="alice", hashed_key="new") == 1

    assert [r.hashed_key for r in await api_keys.lookup(auth, key_ids=[key.key_id])] == ["new"]


async def test_a_touch_goes_forward_only(auth: Session, alice: Session, key: ApiKey, key_of_bob: ApiKey) -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)

    async def touch(*when: datetime) -> tuple[int, datetime | None]:
        touched = await api_keys.touch(auth, ids=[key.id, key_of_bob.id][: len(when)], used_at=list(when))
        seen = await api_keys.get(alice, id=key.id, user_id="alice")
        return touched, seen.last_used_at if seen else None

    assert await touch(noon, noon) == (2, noon)
    assert await touch(noon - timedelta(seconds=1)) == (0, noon)
    assert await touch(noon) == (0, noon)
    assert await touch(noon + timedelta(seconds=1), noon) == (1, noon + timedelta(seconds=1))
    assert await api_keys.touch(auth, ids=["key_nobodys"], used_at=[noon]) == 0
    assert await api_keys.touch(auth, ids=[], used_at=[]) == 0


async def test_a_touch_is_no_change_of_the_key(
    auth: Session, key: ApiKey, stored: Callable[[], dict[str, Any]], superuser: psycopg.Connection
) -> None:
    before, trail = stored(), superuser.execute("select id from audit_log").fetchall()

    await api_keys.touch(auth, ids=[key.id], used_at=[END])

    assert stored() == {**before, "last_used_at": "9999-12-31T23:59:59.999999+00:00"}
    assert superuser.execute("select id from audit_log").fetchall() == trail


async def test_a_key_and_its_opening_usage_are_made_together_or_not_at_all(
    database: Database, make_key: Any, superuser: psycopg.Connection
) -> None:
    alice = database.session("crafely_app", Identity("alice"))

    async def both(user_id: str) -> None:
        async with alice.transaction() as tx:
            made = await make_key(tx, "alice", "opening")
            opening = {
                "user_id": user_id,
                "api_key_id": made.id,
                "provider": "openai",
                "model": "gpt-4",
                "type": "chat",
            }
            [told] = await usage.record(
                tx, records=msgspec.Raw(msgspec.json.encode([{**opening, "tokens_total": 0, "cost": 0}]))
            )
            if told.status != "recorded":
                raise LookupError(told.status)

    with pytest.raises(LookupError, match="unknown_key"):
        await both("bob")
    assert superuser.execute("select from api_keys").rowcount == 0

    await both("alice")
    assert superuser.execute(
        "select u.tokens_total from usage u join api_keys k on k.id = u.api_key_id"
    ).fetchall() == [(0,)]


async def test_a_key_is_rotated_as_it_was_seen_or_not_at_all(
    alice: Session, bob: Session, key: ApiKey, superuser: psycopg.Connection
) -> None:
    async def rotate(session: Session, user_id: str, **seen: Any) -> ApiKey | None:
        seen = {"permissions": key.permissions, "versions": [key.updated_at], "overlap_seconds": 60, **seen}
        return await api_keys.rotate(
            session, id=key.id, user_id=user_id, key_id="new", hashed_key="hash", prefix=None, **seen
        )

    for session, user_id in ((bob, "bob"), (bob, "alice")):
        assert await rotate(session, user_id) is None
    assert await rotate(alice, "alice", permissions=["agents:read", "agents:write"]) is None
    assert await rotate(alice, "alice", versions=[END]) is None
    for change in ("active = false", "expires_at = now()"):
        with superuser.transaction():
            superuser.execute(f"update api_keys set {change}".encode())  # noqa: S608 - of this test
        assert await rotate(alice, "alice", versions=None) is None
        superuser.execute("update api_keys set active = true, expires_at = null")
    assert superuser.execute("select from api_keys").rowcount == 1

    rotated = await rotate(alice, "alice", versions=None)
    assert rotated is not None
    assert (rotated.rotated_from, rotated.permissions) == (key.id, key.permissions)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await rotate(alice, "alice", versions=None)
