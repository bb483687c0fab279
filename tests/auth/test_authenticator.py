import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from crafely.auth import _REASONS, Authenticator, Caller, Denied, KeyCache, Verifier, keys
from crafely.auth.clerk import _FAULTS, Clerk, Fault, Unavailable
from crafely.auth.hashing import Busy, Hasher
from crafely.config import Settings
from tests.auth.conftest import JwksServer, Signer
from tests.auth.table import Row, Table, with_secret

PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
async def hasher() -> AsyncIterator[Hasher]:
    hasher = Hasher(Settings(argon2_memory_kib=64))
    yield hasher
    hasher.close()


@pytest.fixture
def cache() -> KeyCache:
    """Nobody tells it of changes, so every row is read anew."""
    return KeyCache(size=100, seconds=60)


@pytest.fixture
async def authenticator(table: Table, hasher: Hasher, cache: KeyCache, clerk: Clerk) -> Authenticator:
    verifier = Verifier(hasher, cache, lookup=table.lookup, rehash=table.rehash)
    return Authenticator(verifier, clerk, admins=("user_boss",), seen=table.seen.append)


@pytest.fixture
async def key(table: Table, hasher: Hasher) -> keys.NewKey:
    new = keys.generate("live")
    table.rows[new.key_id] = Row(id="key_1", key_id=new.key_id, hashed_key=await hasher.hash(new.secret))
    return new


async def denial(authenticator: Authenticator, token: str) -> str:
    with pytest.raises(Denied) as caught:
        await authenticator.authenticate(token)
    assert token == "" or token not in str(caught.value)
    return caught.value.code


async def test_a_key_becomes_a_caller(authenticator: Authenticator, table: Table, key: keys.NewKey) -> None:
    assert await authenticator.authenticate(key.token) == Caller(
        user_id="user_2b", permissions=frozenset({"agents:read"}), api_key_id="key_1"
    )
    # Once for the hash to try the secret on, and once for what the row says after that.
    assert table.looked_up == [key.key_id] * 2
    assert table.seen == ["key_1"]


async def test_a_key_that_is_remembered_is_known_at_once_and_only_while_it_is_good(
    authenticator: Authenticator, table: Table, cache: KeyCache, key: keys.NewKey
) -> None:
    cache.trust()
    wrong = with_secret(key.token, "x" * 32)
    assert authenticator.known(key.token) is None
    caller = await authenticator.authenticate(key.token)
    assert await denial(authenticator, wrong) == "NOT_FOUND"
    looked_up = list(table.looked_up)
    assert [authenticator.known(token) for token in (key.token, wrong, "crf_", "a.b.c")] == [caller, None, None, None]
    assert await authenticator.authenticate(key.token) == caller
    assert await denial(authenticator, wrong) == "NOT_FOUND"
    assert table.looked_up == looked_up
    assert table.seen == ["key_1"] * 3

    for changes, code in (({"active": False}, "REVOKED"), ({"active": True, "expires_at": PAST}, "EXPIRED")):
        table.change(key.key_id, **changes)
        cache.evict(key.key_id)
        assert authenticator.known(key.token) is None
        # Remembered or not.
        assert await denial(authenticator, key.token) == code
        assert await denial(authenticator, key.token) == code
        assert authenticator.known(key.token) is None
    assert table.seen == ["key_1"] * 3


async def test_a_session_becomes_a_caller(authenticator: Authenticator, signer: Signer) -> None:
    assert await authenticator.authenticate(signer.token()) == Caller(
        user_id="user_2a", permissions=frozenset({"*"}), session_id="sess_2a"
    )
    boss = await authenticator.authenticate(signer.token(sub="user_boss"))
    assert boss.permissions == {"*", "admin"}


async def test_a_malformed_key_costs_no_lookup(authenticator: Authenticator, table: Table, key: keys.NewKey) -> None:
    for token in ("crf_", key.token[:-1], key.token + "x", key.token.swapcase(), "crf_" + "x" * 1_000_000):
        assert await denial(authenticator, token) == "MALFORMED"
    assert table.looked_up == []


async def test_unknown_ids_and_wrong_secrets_look_the_same(
    authenticator: Authenticator, table: Table, key: keys.NewKey
) -> None:
    assert await denial(authenticator, keys.generate("live").token) == "NOT_FOUND"
    assert await denial(authenticator, with_secret(key.token, "x" * 32)) == "NOT_FOUND"
    assert table.seen == []
    await authenticator.authenticate(with_secret(key.token, key.secret))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"active": False}, "REVOKED"),
        ({"expires_at": PAST}, "EXPIRED"),
        ({"active": False, "expires_at": PAST}, "REVOKED"),
    ],
)
async def test_only_the_holder_learns_that_a_key_has_ended(
    authenticator: Authenticator, table: Table, key: keys.NewKey, changes: dict[str, object], code: str
) -> None:
    table.change(key.key_id, **changes)
    assert await denial(authenticator, key.token) == code
    assert await denial(authenticator, with_secret(key.token, "x" * 32)) == "NOT_FOUND"
    assert table.seen == []


async def test_expiry_is_a_moment(authenticator: Authenticator, table: Table, key: keys.NewKey) -> None:
    for distance, good in ((timedelta(hours=1), True), (timedelta(seconds=-1), False), (timedelta(0), False)):
        table.change(key.key_id, expires_at=datetime.now(UTC) + distance)
        if good:
            await authenticator.authenticate(key.token)
        else:
            assert await denial(authenticator, key.token) == "EXPIRED"


async def test_a_hash_with_old_parameters_is_renewed_on_use(
    authenticator: Authenticator, table: Table, key: keys.NewKey
) -> None:
    weak = Hasher(Settings(argon2_memory_kib=8))
    table.change(key.key_id, hashed_key=await weak.hash(key.secret))
    weak.close()
    assert await denial(authenticator, with_secret(key.token, "x" * 32)) == "NOT_FOUND"
    assert "m=8," in table.rows[key.key_id].hashed_key
    await authenticator.authenticate(key.token)
    renewed = table.rows[key.key_id].hashed_key
    assert "m=64," in renewed
    await authenticator.authenticate(key.token)
    assert table.rows[key.key_id].hashed_key is renewed


@pytest.mark.parametrize("problem", [OSError("no database"), Busy("full")])
async def test_a_hash_that_cannot_be_renewed_does_not_turn_its_holder_away(
    authenticator: Authenticator,
    table: Table,
    key: keys.NewKey,
    problem: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    weak = Hasher(Settings(argon2_memory_kib=8))
    table.change(key.key_id, hashed_key=await weak.hash(key.secret))
    weak.close()
    table.broken = problem
    await authenticator.authenticate(key.token)
    assert "key_1 keeps its old parameters" in caplog.text
    assert key.secret not in caplog.text


@pytest.mark.parametrize("token", ["", "x", "CRF_live", "\0", "é", "a.b.c", "Bearer crf_live"])
async def test_what_is_neither_is_malformed(authenticator: Authenticator, table: Table, token: str) -> None:
    assert await denial(authenticator, token) == "MALFORMED"
    assert table.looked_up == []


async def test_a_refused_session_token_says_why(authenticator: Authenticator, signer: Signer) -> None:
    assert await denial(authenticator, signer.token(exp=1)) == "EXPIRED"
    assert await denial(authenticator, signer.token(azp="https://evil.com")) == "WRONG_PARTY"


def test_every_reason_for_refusal_has_its_sentence() -> None:
    faults = {fault.upper() for fault in get_args(Fault)}
    assert faults | {"NOT_FOUND", "REVOKED"} == set(_REASONS)
    assert {fault for _, fault in _FAULTS} < set(get_args(Fault))


async def test_no_capacity_is_not_a_refusal(
    authenticator: Authenticator, jwks: JwksServer, hasher: Hasher, key: keys.NewKey, signer: Signer
) -> None:
    jwks.signers = []
    with pytest.raises(Unavailable):
        await authenticator.authenticate(signer.token())
    while hasher._slots.acquire(blocking=False):
        pass
    # The unknown key too: it costs a hash, like any other.
    for token in (key.token, keys.generate("live").token):
        with pytest.raises(Busy):
            await authenticator.authenticate(token)


def test_a_caller_cannot_be_changed() -> None:
    caller = Caller(user_id="user_1", permissions=frozenset())
    with pytest.raises(AttributeError):
        caller.user_id = "user_2"  # type: ignore[misc] # the point of the test
