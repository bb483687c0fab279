"""What is remembered of keys, for how long, how much of it, and when it is not believed."""

import gc
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crafely.auth import Entry, KeyCache, KeyRecord, key_cache, keys
from tests.auth.table import Row, with_secret

SECONDS = 60.0


class Clock:
    """A clock that a test moves. It never tells the same time twice."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.000001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(key_cache, "monotonic", clock)
    monkeypatch.setattr(key_cache, "time", clock)
    return clock


@pytest.fixture
def cache(clock: Clock) -> KeyCache:
    """Three of each kind, and it is told of changes."""
    cache = KeyCache(size=3, seconds=SECONDS)
    cache.trust()
    return cache


def row(key_id: str, **changes: Any) -> Row:
    return msgspec.structs.replace(Row(id=f"key_{key_id}", key_id=key_id, hashed_key="hash"), **changes)


def learn(cache: KeyCache, token: str, key_id: str = "", *, fits: bool = True, **changes: Any) -> Entry:
    """What the verifier does of a token, by default one of a key of the same name."""
    key_id = key_id or token
    with cache.reading(key_id) as reading:
        entry = Entry(cache.digest(token), key_id, "hash", fits=fits)
        entry.read(row(key_id, **changes) if fits else None, reading.began)
    cache.keep(entry)
    return entry


def remembered(cache: KeyCache, *tokens: str) -> str:
    return "".join(token for token in tokens if cache.recall(token) is not None)


def test_a_key_that_was_read_is_remembered_and_no_other(cache: KeyCache) -> None:
    entry = learn(cache, "a", permissions=("agents:read", "x:y"))
    assert cache.recall("a") is entry
    assert cache.recall("b") is None
    assert entry.code() == "VALID"
    assert entry.caller is not None
    assert (entry.caller.user_id, entry.caller.api_key_id) == ("user_2b", "key_a")
    assert entry.caller.permissions == {"agents:read", "x:y"}
    assert (cache.hits, len(cache)) == (1, 1)


def test_two_caches_do_not_share_digests() -> None:
    assert KeyCache(size=1, seconds=1).digest("a") != KeyCache(size=1, seconds=1).digest("a")


def test_a_row_is_believed_while_changes_are_told_and_only_if_it_was_read_since(clock: Clock) -> None:
    cache = KeyCache(size=3, seconds=SECONDS)
    told: list[tuple[bool, bool]] = []

    def look() -> None:
        told.append((cache.trusted, cache.recall("a") is not None))

    learn(cache, "a")
    look()
    cache.trust()
    look()
    learn(cache, "a")
    look()
    cache.distrust()
    look()
    cache.trust()
    look()
    assert told == [(False, False), (True, False), (True, True), (False, False), (True, False)]
    # What was hashed stays known.
    assert cache.known(cache.digest("a"), "hash") is not None


def test_a_row_that_was_asked_for_before_changes_were_told_is_not_believed(clock: Clock) -> None:
    cache = KeyCache(size=3, seconds=SECONDS)
    with cache.reading("a") as reading:
        cache.trust()
        entry = Entry(cache.digest("a"), "a", "hash", fits=True)
        entry.read(row("a"), reading.began)
        cache.keep(entry)
    assert cache.recall("a") is None


@pytest.mark.parametrize(
    ("fits", "seconds", "believed"), [(True, 60, 60), (False, 60, 5), (False, 2, 2), (True, 2, 2), (True, 0, 0)]
)
def test_what_was_read_is_believed_for_a_time(clock: Clock, fits: bool, seconds: float, believed: float) -> None:
    cache = KeyCache(size=3, seconds=seconds)
    cache.trust()
    began = learn(cache, "a", fits=fits).read_at
    for after, wanted in ((0.0, True), (0.99, True), (1.01, False), (100.0, False)):
        clock.now = began + after * believed
        assert (cache.recall("a") is not None) is (wanted and believed > 0)
        # Being asked for does not make it younger.
    assert cache.known(cache.digest("a"), "hash") is not None


def test_expiry_is_looked_at_whenever_a_key_is_used(cache: KeyCache, clock: Clock) -> None:
    end = datetime.fromtimestamp(clock.now, UTC) + timedelta(seconds=10)
    entry = learn(cache, "a", expires_at=end)
    for moment, code in ((0, "VALID"), (9.9, "VALID"), (10.1, "EXPIRED"), (30, "EXPIRED")):
        clock.now = 1000 + moment
        assert cache.recall("a") is entry
        assert entry.code() == code


def test_what_a_key_is_worth_is_said_in_one_word(cache: KeyCache) -> None:
    past = datetime(1970, 1, 1, tzinfo=UTC)
    assert learn(cache, "a", active=False).code() == "REVOKED"
    assert learn(cache, "a", active=False, expires_at=past).code() == "REVOKED"
    assert learn(cache, "a", expires_at=past).code() == "EXPIRED"
    assert learn(cache, "a", fits=False).code() == "NOT_FOUND"


def test_a_row_that_has_changed_is_not_believed_and_others_are(cache: KeyCache) -> None:
    learn(cache, "right", "a")
    learn(cache, "wrong", "a", fits=False)
    learn(cache, "b")
    cache.evict("a")
    cache.evict("never seen")
    assert remembered(cache, "right", "wrong", "b") == "b"
    assert cache.evictions == 2
    learn(cache, "right", "a")
    assert remembered(cache, "right", "wrong", "b") == "rightb"


@pytest.mark.parametrize("fits", [True, False])
def test_the_oldest_of_a_kind_goes_first_when_there_are_too_many(cache: KeyCache, fits: bool) -> None:
    for token in "abcd":
        learn(cache, token, fits=fits)
    assert len(cache) == 3
    assert remembered(cache, *"abcd") == "bcd"
    assert set(cache._of_key) == set("bcd")


def test_bad_keys_cannot_push_out_good_ones(cache: KeyCache) -> None:
    for token in "abc":
        learn(cache, token)
    for number in range(100):
        learn(cache, f"bad {number}", "a", fits=False)
    assert remembered(cache, *"abc") == "abc"
    assert len(cache) == 6
    # Nor can what they leave behind grow.
    assert sum(map(len, cache._of_key.values())) == 6


def test_a_key_that_was_used_since_it_was_passed_over_stays(cache: KeyCache) -> None:
    for token in "abc":
        learn(cache, token)
    cache.recall("a")
    learn(cache, "d")
    assert {entry.key_id for entry in cache._good.values()} == set("acd")
    # Once: it was not used again.
    learn(cache, "e")
    learn(cache, "f")
    assert {entry.key_id for entry in cache._good.values()} == set("def")


def test_room_is_made_though_all_are_in_use(clock: Clock) -> None:
    cache = KeyCache(size=40, seconds=SECONDS)
    cache.trust()
    for number in range(40):
        learn(cache, str(number))
    for number in range(40, 100):
        for entry in cache._good.values():
            entry.used = True
        learn(cache, str(number))
        assert len(cache) == 40
        assert cache.recall(str(number)) is not None


def test_one_entry_is_room_enough(clock: Clock) -> None:
    cache = KeyCache(size=1, seconds=SECONDS)
    cache.trust()
    for token in ("a", "b", "b", "a"):
        learn(cache, token)
        assert remembered(cache, "a", "b") == token


def test_a_token_is_of_one_kind(cache: KeyCache) -> None:
    for fits in (True, False, True):
        entry = learn(cache, "a", fits=fits)
        assert cache.recall("a") is entry
        assert cache.known(cache.digest("a"), "hash") is entry
        assert (len(cache), cache._of_key) == (1, {"a": [entry]})


def test_a_token_that_is_learnt_anew_takes_its_own_place_and_no_other(cache: KeyCache) -> None:
    learn(cache, "right", "a")
    wrong = learn(cache, "wrong", "a", fits=False)
    right = learn(cache, "right", "a")
    assert cache._of_key == {"a": [wrong, right]}
    cache.evict("a")
    assert remembered(cache, "right", "wrong") == ""


def test_any_text_has_a_digest(cache: KeyCache) -> None:
    texts = ["", "a", "\0", "é", "\ud800", "\udcff", "x" * 100_000]
    assert len({cache.digest(text) for text in texts}) == len(texts)
    assert [cache.recall(text) for text in texts] == [None] * len(texts)


def test_a_token_is_known_only_for_the_hash_that_it_was_tried_on(cache: KeyCache) -> None:
    entry = learn(cache, "a")
    cache.evict("a")
    assert cache.known(cache.digest("a"), "hash") is entry
    assert cache.known(cache.digest("a"), "another hash") is None
    assert cache.known(cache.digest("a"), None) is None
    assert cache.known(cache.digest("b"), "hash") is None
    nobody = Entry(cache.digest("b"), "b", None, fits=False)
    cache.keep(nobody)
    assert cache.known(cache.digest("b"), None) is nobody


def test_a_reading_is_overtaken_by_a_change_that_is_told_meanwhile_and_by_no_other(cache: KeyCache) -> None:
    cache.evict("a")
    with cache.reading("a") as first:
        assert not first.overtaken
        cache.evict("b")
        assert not first.overtaken
        cache.evict("a")
        with cache.reading("a") as second:
            assert (first.overtaken, second.overtaken) == (True, False)
            cache.evict("a")
            assert (first.overtaken, second.overtaken) == (True, True)
    with cache.reading("a") as third:
        assert not third.overtaken
    assert cache._reading == {}


def test_when_all_rows_have_changed_none_is_believed_and_none_that_is_on_its_way(cache: KeyCache) -> None:
    learn(cache, "a")
    learn(cache, "bad", "b", fits=False)
    with cache.reading("a") as early:
        cache.flush()
        with cache.reading("a") as late:
            assert (early.overtaken, late.overtaken) == (True, False)
    assert remembered(cache, "a", "bad") == ""
    assert cache.trusted
    learn(cache, "a")
    assert remembered(cache, "a", "bad") == "a"
    # Who did not believe before does not begin to.
    cache.distrust()
    cache.flush()
    learn(cache, "a")
    assert remembered(cache, "a") == ""


def test_a_reading_that_fails_leaves_nothing_behind(cache: KeyCache) -> None:
    def fail() -> None:
        with cache.reading("a"):
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    assert cache._reading == {}


def test_a_row_that_was_asked_for_earlier_does_not_replace_a_later_one(cache: KeyCache) -> None:
    entry = learn(cache, "a")
    with cache.reading("a") as early, cache.reading("a") as late:
        entry.read(row("a", active=False, permissions=()), late.began)
        entry.read(row("a"), early.began)
    assert entry.code() == "REVOKED"
    assert entry.caller is not None
    assert entry.caller.permissions == frozenset()
    assert entry.read_at == late.began
    # What is not believed gives way to anything.
    entry.read_at = -math.inf
    entry.read(row("a"), early.began)
    assert entry.code() == "VALID"


ACTIONS = st.one_of(
    st.tuples(st.just("learn"), st.sampled_from("abcdef"), st.sampled_from("xyz"), st.booleans()),
    st.tuples(st.just("recall"), st.sampled_from("abcdef")),
    st.tuples(st.just("evict"), st.sampled_from("xyz")),
)


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=60), st.integers(1, 4))
def test_whatever_happens_it_is_bounded_and_finds_what_it_has_to_evict(actions: list[Any], size: int) -> None:
    cache = KeyCache(size=size, seconds=SECONDS)
    cache.trust()
    for action, name, *more in actions:
        if action == "learn":
            learn(cache, name, more[0], fits=more[1])
        elif action == "recall":
            cache.recall(name)
        else:
            cache.evict(name)
            assert not [e for kind in cache._entries for e in kind.values() if e.key_id == name and e.read_at > 0]
        kept = [entry for kind in cache._entries for entry in kind.values()]
        assert all(len(kind) <= size for kind in cache._entries)
        assert sorted(map(id, kept)) == sorted(id(e) for of_key in cache._of_key.values() for e in of_key)
        assert all(of_key and {e.key_id for e in of_key} == {key_id} for key_id, of_key in cache._of_key.items())
        assert {e.fits for e in cache._entries[0].values()} <= {False}
        assert {e.fits for e in cache._good.values()} <= {True}


def texts(*roots: object) -> set[str]:
    """Every text that can be reached from these objects, types and modules left out."""
    seen: dict[int, object] = {}
    waiting: list[object] = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type) or type(one).__name__ in {"module", "function", "builtin_function"}:
            continue
        seen[id(one)] = one
        waiting += gc.get_referents(one)
        waiting += [getattr(one, name, None) for name in getattr(type(one), "__slots__", ())]
    found = {one for one in seen.values() if isinstance(one, str)}
    return found | {bytes(one).decode("latin1") for one in seen.values() if isinstance(one, bytes | bytearray)}


def test_no_token_and_no_secret_is_kept_or_shown(cache: KeyCache) -> None:
    new = keys.generate("live")
    entry = learn(cache, new.token, new.key_id)
    wrong = with_secret(new.token, "w" * 32)
    bad = learn(cache, wrong, new.key_id, fits=False)
    for token in (new.token, wrong):
        assert cache.recall(token) is not None
    kept = texts(cache)
    # It finds what is there,
    assert new.key_id in kept
    assert "user_2b" in kept
    assert any(cache.digest(new.token).decode("latin1") == text for text in kept)
    # and nothing else.
    shown = {f"{one!r} {one}" for one in (cache, entry, bad, entry.caller, cache.reading(new.key_id))}
    for text in kept | shown:
        assert new.secret not in text
        assert "w" * 32 not in text
    records: list[KeyRecord | None] = [entry.record, bad.record]
    assert records[1] is None
