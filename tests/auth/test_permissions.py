import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crafely.auth.permissions import ADMIN, EVERYTHING, NAMES, PATTERN, Permissions, allows, duplicates, excess

SOME_NAMES = st.sampled_from([*sorted(NAMES), "documents:read"])
HELD = st.frozensets(SOME_NAMES)


def accepted(names: list[str]) -> bool:
    try:
        msgspec.convert(names, Permissions)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", [*sorted(NAMES), "documents:read", "a", "a-1:b-2", "x" * 64])
def test_a_good_name_is_taken(name: str) -> None:
    assert accepted([name])


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "a:",
        ":a",
        "a:b:c",
        "A:read",
        "1a",
        "-a",
        "a b",
        "a:*",
        "**",
        "*:read",
        "agents:read\n",
        "\nadmin",
        "*\n",
        "a\0",
        "é",
        "a_b",
        "x" * 65,
    ],
)
def test_a_bad_name_is_refused(name: str) -> None:
    assert not accepted([name])


def test_a_list_of_names_is_bounded() -> None:
    assert accepted([f"a{n}" for n in range(64)])
    assert not accepted([f"a{n}" for n in range(65)])


def test_the_pattern_takes_linear_time() -> None:
    # A pattern that backtracks would not come back from this.
    assert re.search(PATTERN, "a-" * 500_000 + ":" + "a-" * 500_000 + "!") is None


@pytest.mark.parametrize(
    ("held", "wanted", "answer"),
    [
        ({"agents:read"}, "agents:read", True),
        ({"agents:read"}, "agents:write", False),
        ({"agents:read"}, "agents", False),
        ({"agents"}, "agents:read", False),
        (set(), "agents:read", False),
        ({"*"}, "agents:read", True),
        ({"*"}, "documents:read", True),
        ({"*"}, "*", True),
        ({"*"}, "admin", False),
        ({"admin"}, "admin", True),
        ({"admin"}, "agents:read", False),
        ({"admin"}, "*", False),
        ({"*", "admin"}, "admin", True),
        ({"*"}, "monitor:read", False),
        ({"admin"}, "monitor:read", True),
        ({"monitor:read"}, "monitor:read", True),
        ({"monitor:read"}, "admin", False),
    ],
)
def test_allows(held: set[str], wanted: str, answer: bool) -> None:
    assert allows(frozenset(held), wanted) is answer


@given(HELD, st.lists(SOME_NAMES))
def test_nobody_hands_out_more_than_they_hold(held: frozenset[str], wanted: list[str]) -> None:
    refused = excess(held, wanted)
    given_out = frozenset(wanted) - frozenset(refused)
    # Whatever the new holder may do, the giver may do.
    assert all(allows(held, name) for name in NAMES | {"other:thing"} if allows(given_out, name))
    # And nothing is refused without need.
    assert not any(allows(held, name) for name in refused)
    assert refused == [name for name in wanted if name in refused]


def test_excess_of_the_wildcard_and_of_admins() -> None:
    assert excess(frozenset({EVERYTHING}), ["agents:read", "*", "own:thing", "admin"]) == ["admin"]
    assert excess(frozenset({EVERYTHING, ADMIN}), ["agents:read", "*", "own:thing", "admin"]) == []
    assert excess(frozenset({"agents:read"}), ["*", "agents:read", "agents:write"]) == ["*", "agents:write"]


def test_duplicates() -> None:
    assert duplicates(["b", "a", "b", "a", "b", "c"]) == ["b", "a"]
    assert duplicates(["a", "b"]) == []
