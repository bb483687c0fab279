"""Rows to begin with."""

from collections.abc import Awaitable, Callable

import pytest

from crafely.db.session import Database, Session
from crafely.store import api_keys
from crafely.store.api_keys import ApiKey

MakeKey = Callable[..., Awaitable[ApiKey]]


@pytest.fixture
def make_key() -> MakeKey:
    """Makes a key of a user, whose public half is given."""

    async def make_key(session: Session, user_id: str, key_id: str) -> ApiKey:
        return await api_keys.create(
            session,
            user_id=user_id,
            key_id=key_id,
            hashed_key="hash",
            name=None,
            prefix=None,
            permissions=["agents:read"],
            expires_at=None,
            rate_limit=None,
        )

    return make_key


@pytest.fixture
async def key(alice: Session, make_key: MakeKey) -> ApiKey:
    """A key of alice's."""
    return await make_key(alice, "alice", "key-of-alice")


@pytest.fixture
async def key_of_bob(bob: Session, make_key: MakeKey) -> ApiKey:
    """A key of bob's."""
    return await make_key(bob, "bob", "key-of-bob")


@pytest.fixture
def meter(database: Database) -> Session:
    """What records usage, for any user."""
    return database.session("crafely_meter")


@pytest.fixture
def admin(database: Database) -> Session:
    """What keeps house."""
    return database.session("crafely_admin")
