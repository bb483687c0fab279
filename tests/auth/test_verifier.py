"""What a key is worth: argon2 once, and the row always after it."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from crafely.auth import Entry, KeyCache, Verifier, keys
from crafely.auth.hashing import Busy, Hasher, Verdict
from crafely.config import Settings
from tests.auth.table import Row, Table, with_secret
from tests.db.statements import until


class Counting(Hasher):
    """Counts what it verifies, and holds it up while the gate is closed. The work is real."""

    def __init__(self) -> None:
        super().__init__(Settings(argon2_memory_kib=64, argon2_threads=2))
        self.gate = threading.Event()
        self.gate.set()
        self.begun = 0
        self.dummies = 0
        self.hashed = 0
        self.broken: Exception | None = None

    def _verify(self, hashed: str | None, secret: str) -> Verdict:
        self.begun += 1
        self.dummies += hashed is None
        assert self.gate.wait(30)
        if self.broken is not None:
            raise self.broken
        return super()._verify(hashed, secret)

    def _hash(self, secret: str) -> str:
        self.hashed += 1
        return super()._hash(secret)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
async def hasher() -> AsyncIterator[Counting]:
    hasher = Counting()
    yield hasher
    hasher.gate.set()
    hasher.close()


@pytest.fixture
def cache() -> KeyCache:
    """It is told of changes: by the tests."""
    cache = KeyCache(size=1000, seconds=60)
    cache.trust()
    return cache


@pytest.fixture
async def verifier(table: Table, hasher: Hasher, cache: KeyCache) -> Verifier:
    return Verifier(hasher, cache, lookup=table.lookup, rehash=table.rehash)


@pytest.fixture
async def key(table: Table, hasher: Counting) -> keys.NewKey:
    new = keys.generate("live")
    table.rows[new.key_id] = Row(id="key_1", key_id=new.key_id, hashed_key=await hasher.hash(new.secret))
    hasher.hashed = 0
    return new


def code(entry: Entry | None) -> str:
    return entry.code() if entry is not None else "MALFORMED"


async def test_a_hot_key_costs_neither_a_query_nor_a_hash(
    verifier: Verifier, table: Table, hasher: Counting, cache: KeyCache, key: keys.NewKey
) -> None:
    first = await verifier.examine(key.token)
    assert (code(first), hasher.begun, len(table.looked_up)) == ("VALID", 1, 2)
    for _ in range(10):
        assert await verifier.examine(key.token) is first
        assert verifier.recall(key.token) is first
    assert (hasher.begun, len(table.looked_up)) == (1, 2)
    assert (cache.hits, cache.misses) == (20, 1)


async def test_a_cold_key_is_hashed_once_for_all_who_wait(
    verifier: Verifier, hasher: Counting, key: keys.NewKey
) -> None:
    hasher.gate.clear()
    callers = [asyncio.create_task(verifier.examine(key.token)) for _ in range(100)]
    await until(lambda: hasher.begun > 0)
    callers += [asyncio.create_task(verifier.examine(key.token)) for _ in range(100)]
    await asyncio.sleep(0)
    hasher.gate.set()
    assert {code(entry) for entry in await asyncio.gather(*callers)} == {"VALID"}
    assert hasher.begun == 1
    assert verifier._at_work == {}


async def test_tokens_that_differ_are_hashed_each(verifier: Verifier, hasher: Counting, key: keys.NewKey) -> None:
    tokens = [key.token, *(with_secret(key.token, letter * 32) for letter in "abc"), keys.generate("live").token]
    entries = await asyncio.gather(*(verifier.examine(token) for token in tokens * 10))
    assert [code(entry) for entry in entries] == ["VALID", *["NOT_FOUND"] * 4] * 10
    assert hasher.begun == 5


@pytest.mark.parametrize("first", [True, False])
async def test_who_gives_up_takes_the_work_from_nobody(
    verifier: Verifier, hasher: Counting, key: keys.NewKey, first: bool
) -> None:
    hasher.gate.clear()
    callers = [asyncio.create_task(verifier.examine(key.token)) for _ in range(3)]
    await until(lambda: hasher.begun > 0)
    callers.pop(0 if first else 1).cancel()
    await asyncio.sleep(0)
    hasher.gate.set()
    assert [code(entry) for entry in await asyncio.gather(*callers)] == ["VALID"] * 2
    assert hasher.begun == 1


async def test_where_all_have_given_up_the_work_is_kept_for_the_next(
    verifier: Verifier, hasher: Counting, key: keys.NewKey
) -> None:
    hasher.gate.clear()
    caller = asyncio.create_task(verifier.examine(key.token))
    await until(lambda: hasher.begun > 0)
    caller.cancel()
    await asyncio.wait([caller])
    hasher.gate.set()
    await until(lambda: verifier._at_work == {})
    assert code(await verifier.examine(key.token)) == "VALID"
    assert hasher.begun == 1


async def test_where_all_have_given_up_and_the_work_fails_nobody_complains(
    verifier: Verifier, hasher: Counting, key: keys.NewKey
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    hasher.broken = Busy("no memory")
    hasher.gate.clear()
    caller = asyncio.create_task(verifier.examine(key.token))
    await until(lambda: hasher.begun > 0)
    caller.cancel()
    await asyncio.wait([caller])
    hasher.gate.set()
    await until(lambda: verifier._at_work == {})
    gc.collect()
    assert complaints == []


async def test_a_secret_is_tried_on_the_hash_that_its_row_has_now_and_waits_for_no_other(
    verifier: Verifier, table: Table, hasher: Counting, key: keys.NewKey
) -> None:
    hashed_key = await hasher.hash("y" * 32)
    hasher.gate.clear()
    callers = [asyncio.create_task(verifier.examine(key.token))]
    await until(lambda: hasher.begun == 1)
    table.change(key.key_id, hashed_key=hashed_key)
    callers.append(asyncio.create_task(verifier.examine(key.token)))
    await until(lambda: hasher.begun == 2)
    hasher.gate.set()
    assert [code(entry) for entry in await asyncio.gather(*callers)] == ["NOT_FOUND"] * 2


async def test_no_capacity_is_told_to_all_who_wait_and_remembered_of_nobody(
    verifier: Verifier, hasher: Counting, key: keys.NewKey
) -> None:
    taken = 0
    while hasher._slots.acquire(blocking=False):
        taken += 1
    told = await asyncio.gather(*(verifier.examine(key.token) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [Busy] * 3
    hasher._slots.release(taken)
    assert code(await verifier.examine(key.token)) == "VALID"


async def test_a_wrong_secret_is_remembered_and_never_hashed_again(
    verifier: Verifier, table: Table, hasher: Counting, cache: KeyCache, key: keys.NewKey
) -> None:
    wrong = with_secret(key.token, "x" * 32)
    for _ in range(3):
        entry = await verifier.examine(wrong)
        assert (code(entry), entry is not None and entry.caller) == ("NOT_FOUND", None)
    assert (hasher.begun, len(table.looked_up)) == (1, 2)
    # Its time is up: the row is read again, but what does not fit does not fit.
    cache.evict(key.key_id)
    assert code(await verifier.examine(wrong)) == "NOT_FOUND"
    assert (hasher.begun, len(table.looked_up)) == (1, 3)


async def test_an_unknown_key_costs_a_hash_the_first_time(
    verifier: Verifier, table: Table, hasher: Counting, cache: KeyCache, key: keys.NewKey
) -> None:
    unknown = keys.generate("live")
    for _ in range(3):
        assert code(await verifier.examine(unknown.token)) == "NOT_FOUND"
    assert (hasher.begun, hasher.dummies, len(table.looked_up)) == (1, 1, 2)
    # It has come into being: found as soon as what was known of it is not believed any more.
    table.rows[unknown.key_id] = Row(
        id="key_2", key_id=unknown.key_id, hashed_key=await hasher.hash(unknown.secret), user_id="user_2c"
    )
    cache.evict(unknown.key_id)
    entry = await verifier.examine(unknown.token)
    assert entry is not None
    assert entry.caller is not None
    assert (entry.code(), entry.caller.user_id) == ("VALID", "user_2c")


async def test_a_token_without_the_form_of_a_key_costs_nothing(
    verifier: Verifier, table: Table, hasher: Counting, key: keys.NewKey
) -> None:
    for token in ("", "crf_", key.token[:-1], key.token + "x", key.token.swapcase(), "\ud800", "é" * 100):
        assert await verifier.examine(token) is None
    assert (hasher.begun, table.looked_up) == (0, [])


PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "wanted"), [({"active": False}, "REVOKED"), ({"expires_at": PAST}, "EXPIRED"), (None, "NOT_FOUND")]
)
@pytest.mark.parametrize("told", [True, False])
async def test_the_row_is_read_after_the_hash(
    verifier: Verifier,
    table: Table,
    hasher: Counting,
    cache: KeyCache,
    key: keys.NewKey,
    changes: dict[str, object] | None,
    wanted: str,
    told: bool,
) -> None:
    """What has changed while argon2 ran counts, whether the database has told of it yet or not."""
    hasher.gate.clear()
    caller = asyncio.create_task(verifier.examine(key.token))
    await until(lambda: hasher.begun > 0)
    if changes is None:
        del table.rows[key.key_id]
    else:
        table.change(key.key_id, **changes)
    if told:
        cache.evict(key.key_id)
    hasher.gate.set()
    assert code(await caller) == wanted
    assert code(await verifier.examine(key.token)) == wanted


@pytest.mark.parametrize("warm", [True, False])
async def test_a_change_that_is_told_while_its_row_is_on_its_way_is_read(
    verifier: Verifier, table: Table, hasher: Counting, cache: KeyCache, key: keys.NewKey, warm: bool
) -> None:
    """A request in flight does not bring a revoked key back."""
    await verifier.examine(key.token)
    if warm:
        cache.evict(key.key_id)
    else:
        # What was hashed is known, and nothing is believed.
        cache.distrust()
        cache.trust()
    table.answers.clear()
    callers = [asyncio.create_task(verifier.examine(key.token)) for _ in range(3)]
    await asyncio.sleep(0)
    table.change(key.key_id, active=False)
    cache.evict(key.key_id)
    looked_up = len(table.looked_up)
    table.answers.set()
    assert [code(entry) for entry in await asyncio.gather(*callers)] == ["REVOKED"] * 3
    assert len(table.looked_up) == looked_up + 3
    assert code(verifier.recall(key.token)) == "REVOKED"
    assert hasher.begun == 1


async def test_nobody_believes_what_was_overtaken_while_it_is_read_again(
    verifier: Verifier, table: Table, cache: KeyCache, key: keys.NewKey
) -> None:
    await verifier.examine(key.token)
    cache.evict(key.key_id)
    table.answers.clear()
    caller = asyncio.create_task(verifier.examine(key.token))
    await asyncio.sleep(0)
    cache.evict(key.key_id)
    table.answers.set()
    await until(lambda: len(table.looked_up) == 4 or verifier.recall(key.token) is not None)
    assert len(table.looked_up) == 4
    assert code(await caller) == "VALID"


async def test_a_row_that_never_stops_changing_is_answered_and_not_remembered(
    verifier: Verifier, table: Table, cache: KeyCache, key: keys.NewKey
) -> None:
    await verifier.examine(key.token)
    cache.evict(key.key_id)

    async def restless(key_id: str) -> Row | None:
        found = await table.lookup(key_id)
        cache.evict(key_id)
        return found

    verifier._lookup = restless
    looked_up = len(table.looked_up)
    assert code(await verifier.examine(key.token)) == "VALID"
    assert len(table.looked_up) == looked_up + 4
    assert verifier.recall(key.token) is None


async def test_a_secret_that_was_replaced_is_tried_anew_and_the_old_one_fits_no_more(
    verifier: Verifier, table: Table, hasher: Counting, cache: KeyCache, key: keys.NewKey
) -> None:
    assert code(await verifier.examine(key.token)) == "VALID"
    table.change(key.key_id, hashed_key=await hasher.hash("y" * 32))
    cache.evict(key.key_id)
    assert code(await verifier.examine(key.token)) == "NOT_FOUND"
    assert code(await verifier.examine(with_secret(key.token, "y" * 32))) == "VALID"
    assert hasher.begun == 3


async def test_a_hash_that_changes_faster_than_it_can_be_tried_is_no_verdict(
    verifier: Verifier, table: Table, hasher: Counting, key: keys.NewKey
) -> None:
    number = 0

    async def restless(key_id: str) -> Row | None:
        nonlocal number
        number += 1
        table.change(key_id, hashed_key=await hasher.hash(f"another {number}"))
        return await table.lookup(key_id)

    verifier._lookup = restless
    with pytest.raises(Busy, match="faster"):
        await verifier.examine(key.token)
    assert number == 4


async def outdate(table: Table, key: keys.NewKey) -> None:
    weak = Hasher(Settings(argon2_memory_kib=8))
    table.change(key.key_id, hashed_key=await weak.hash(key.secret))
    weak.close()


async def test_a_hash_of_old_parameters_is_renewed_once_for_all_who_wait(
    verifier: Verifier, table: Table, hasher: Counting, key: keys.NewKey
) -> None:
    await outdate(table, key)
    entries = await asyncio.gather(*(verifier.examine(key.token) for _ in range(100)))
    assert {code(entry) for entry in entries} == {"VALID"}
    assert (hasher.hashed, table.rehashed) == (1, 1)
    assert "m=64," in table.rows[key.key_id].hashed_key
    # The old hash, and the new one.
    assert hasher.begun == 2
    assert code(await verifier.examine(with_secret(key.token, "x" * 32))) == "NOT_FOUND"
    assert table.rehashed == 1


async def test_what_looking_up_raises_reaches_the_caller_and_is_not_remembered(
    verifier: Verifier, table: Table, cache: KeyCache, key: keys.NewKey
) -> None:
    async def fail(_: str) -> Row | None:
        raise ConnectionError

    verifier._lookup = fail
    with pytest.raises(ConnectionError):
        await verifier.examine(key.token)
    assert (len(cache), cache._reading) == (0, {})
    verifier._lookup = table.lookup
    assert code(await verifier.examine(key.token)) == "VALID"
