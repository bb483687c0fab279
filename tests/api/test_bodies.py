"""What decode and its helpers take and refuse, without a server."""

import contextlib
import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from crafely.api.bodies import Body, decimal_within, decode, free_json
from crafely.api.problems import Problem
from crafely.api.rules import walk

# Beyond these the rule on numbers begins.
NUMBERS = st.floats(allow_nan=False).filter(lambda number: number == 0 or 1e-299 < abs(number) < 1e299)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | NUMBERS
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


class Holder(Body, kw_only=True, frozen=True):
    free: Raw


_holder = msgspec.json.Decoder(Holder)


@given(JSON)
def test_any_json_passes_with_its_bytes(value: Any) -> None:
    data = json.dumps({"free": value})
    kept = free_json(decode(data.encode(), _holder).free, "/free")
    assert (None if kept is None else json.loads(bytes(kept))) == value


class Flat(Body, kw_only=True, frozen=True):
    id: str | list[str] = ""
    kind_of: str | list[str] = ""
    free: Raw | UnsetType = UNSET


_flat = msgspec.json.Decoder(Flat)
NAMES = st.sampled_from(['"id"', '"kindOf"', '"free"', r'"\u0069d"', ' "id" ', r'"kind\u004ff"'])
TEXTS = st.sampled_from(['"id"', '"a:{"', '""', '["id","id"]', r'"\""', r'"\\"', '"{}"'])
FREE = st.sampled_from(['{"id":1}', '{"id":1,"id":2}', '[{"x":1},{"x":1}]', "7", '"id"', "{}"])


@given(st.lists(st.tuples(NAMES, TEXTS, FREE), max_size=4))
def test_the_strict_pass_is_spared_only_where_it_would_find_nothing(members: list[tuple[str, str, str]]) -> None:
    values = [(name, free if "free" in name else text) for name, text, free in members]
    data = "{" + ",".join(f"{name}:{value}" for name, value in values) + "}"
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        twice |= len(dict(pairs)) != len(pairs)
        return dict(pairs)

    json.loads(data, object_pairs_hook=look)
    with pytest.raises(Problem) if twice else contextlib.nullcontext():
        decode(data.encode(), _flat)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_at_all_raise_anything_but_a_problem(data: bytes) -> None:
    with contextlib.suppress(Problem):
        decode(data, _holder)


def test_null_and_a_field_not_sent_are_none() -> None:
    assert free_json(UNSET, "/x") is None
    assert free_json(None, "/x") is None
    assert free_json(Raw(b" null "), "/x", kind=dict) is None


def test_a_backslash_before_u0000_is_only_text() -> None:
    data = rb'{"free":{"path":"C:\\u0000"}}'
    assert bytes(decode(data, _holder).free) == rb'{"path":"C:\\u0000"}'


def test_words_that_look_like_exponents_are_no_numbers() -> None:
    raw = Raw(b'{"name":"e1234", "digits":"%s", "fine":1e299}' % (b"7" * 400))
    assert free_json(raw, "/x", kind=dict) == raw


def test_levels_count_brackets_that_nest_not_brackets_that_follow() -> None:
    assert free_json(Raw(b"[" + b"[]," * 500 + b"[]]"), "/x") is not None
    assert free_json(Raw(b"[" * 32 + b"]" * 32), "/x") is not None
    with pytest.raises(Problem) as caught:
        free_json(Raw(b"[" * 33 + b"]" * 33), "/x")
    assert caught.value.errors[0].pointer == "/x" + "/0" * 32


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("0", True),
        ("0.00", True),
        ("9999999999.99", True),
        ("1E+3", True),
        ("1.500", True),
        ("10000000000", False),
        ("0.001", False),
        ("-0.01", False),
        ("NaN", False),
        ("sNaN", False),
        ("Infinity", False),
        ("1E+999999", False),
        ("1E-999999", False),
        ("0." + "0" * 5000 + "1", False),
        ("1." + "0" * 5000, True),
    ],
)
def test_decimals_must_fit_their_column(text: str, good: bool) -> None:
    value = Decimal(text)
    if good:
        assert decimal_within(value, "/price", precision=12, scale=2) is value
        return
    with pytest.raises(Problem) as caught:
        decimal_within(value, "/price", precision=12, scale=2)
    assert caught.value.errors[0].pointer == "/price"


def test_walk_visits_names_and_values() -> None:
    seen = list(walk({"a": [1, {"b": 2}]}))
    assert ((), {"a": [1, {"b": 2}]}) in seen
    assert (("a",), "a") in seen
    assert (("a", 1, "b"), 2) in seen
