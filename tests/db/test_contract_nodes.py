"""The text of a parse tree, read back."""

import psycopg
import pytest

from crafely.db import plans
from crafely.db.contract import tree
from crafely.db.contract.nodes import parse, walk


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<>", None),
        ("word", "word"),
        ("()", []),
        ("(i 1 2)", ["1", "2"]),
        ("(b)", []),
        ("(o 12)", ["12"]),
        ('("id" "user id" "q\\"uote")', ["id", "user id", 'q"uote']),
        ("{VAR :varno 1 :name a\\ b :none <>}", {"": "VAR", "varno": "1", "name": "a b", "none": None}),
        ("{CONST :constvalue 4 [ 1 0 -1 0 ] :n 1}", {"": "CONST", "constvalue": [1, 0, -1, 0], "n": "1"}),
        ("({A :b {C :d ()}} {E})", [{"": "A", "b": {"": "C", "d": []}}, {"": "E"}]),
        ("{A :b ({C :d 1}) :e 2}", {"": "A", "b": [{"": "C", "d": "1"}], "e": "2"}),
        ("{A :quoted \\<\\> :number \\12}", {"": "A", "quoted": "<>", "number": "12"}),
        ("(i)", []),
        ("(<> {A :b :c :d 1})", [None, {"": "A", "b": ":c", "d": "1"}]),
        ("(index 1)", ["index", "1"]),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "(", "{A :b 1", "a b", ":field 1", "(:field 1)", "())"])
def test_what_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse(text)


def test_a_walk_goes_into_subqueries_only_on_wish() -> None:
    found = parse("{A :b ({C :d {QUERY :e {F}}} {G})}")

    assert [node[""] for node in walk(found)] == ["A", "C", "QUERY", "F", "G"]
    assert [node[""] for node in walk(found, into_queries=False)] == ["A", "C", "G"]


NAMES = ["a b", 'quo"te', "(", "}", "<>", "\\", "é", ":x", "12", "[ 1 ]"]


def test_names_of_any_kind_come_back(superuser: psycopg.Connection) -> None:
    columns = ", ".join('1 as "{}"'.format(name.replace('"', '""')) for name in NAMES)
    with superuser.transaction(force_rollback=True):
        text = f"select {columns};".encode()
        read = tree.read(superuser, plans.prepare(superuser, text), text)

    assert [entry["resname"] for entry in read["targetList"]] == NAMES
