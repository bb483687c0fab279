"""Texts are built from pieces whose parameters are known; PostgreSQL itself says whether we read them as it does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crafely.db import embedded
from crafely.db.lexer import LexerError, parameters
from crafely.db.query import _number

# A piece of SQL text, and the names of the parameters in it.
Piece = tuple[str, list[str]]
# A piece that is a value, and what the server must answer for it; None: the value of the parameter in it.
Expression = tuple[str, str | None]

TAGS = ["", "t", "tag_1", "é"]
# What confuses a lexer, inside of anything.
FRAGMENTS = [
    ":x",
    ":_y1",
    "'",
    '"',
    "$$",
    "$t$",
    "$1",
    "--",
    "/*",
    "*/",
    "\\",
    "\n",
    "::",
    ":=",
    "a",
    "é",
    "E",
    " ",
    "%",
]
NAMES = ["user_id", "take", "x", "_y1", "名"]

inner = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)
names = st.sampled_from(NAMES)


def string(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def escape_string(value: str) -> str:
    return "e'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def dollar_quote(tag: str, body: str) -> str:
    return f"${tag}${body}${tag}$"


def is_quotable(tag_and_body: tuple[str, str]) -> bool:
    """Whether the body ends where it should, and not before."""
    tag, body = tag_and_body
    return f"{body}${tag}$".index(f"${tag}$") == len(body)


dollar_quotes = st.tuples(st.sampled_from(TAGS), inner).filter(is_quotable)
line_comments = inner.map(lambda text: "--" + text.replace("\n", "") + "\n")
block_comments = st.recursive(
    inner.map(lambda text: text.replace("/*", "").replace("*/", "")),
    lambda nested: st.tuples(nested, nested, nested).map(lambda t: f"{t[0]}/*{t[1]}*/{t[2]}"),
    max_leaves=6,
).map(lambda text: f"/*{text}*/")

without_parameters: st.SearchStrategy[str] = st.one_of(
    inner.map(string),
    inner.map(escape_string),
    inner.map(lambda text: text.replace("'", "")).map(lambda text: f"U&'{text}'"),
    inner.map(identifier),
    dollar_quotes.map(lambda pair: dollar_quote(*pair)),
    line_comments,
    block_comments,
    # Colons that are no parameter, and dollars that are no quote.
    st.sampled_from(
        ["a::text", "n := 1", "list[1:2]", "list[:2]", "a$b$c", "e$$", "$1", "1.5e3", "a - b / c * d", "nameE"]
    ),
)
pieces: st.SearchStrategy[Piece] = st.one_of(
    without_parameters.map(lambda text: (text, [])),
    names.map(lambda name: (f":{name}", [name])),
    names.map(lambda name: (f"(:{name})::text", [name])),
    st.tuples(names, names).map(lambda pair: (f":{pair[0]}-:{pair[1]}", list(pair))),
)
separators = st.sampled_from([" ", "\n", " + ", ", ", "(", ")"])


@given(st.lists(st.tuples(pieces, separators), max_size=12))
@settings(max_examples=500, deadline=None)
def test_exactly_the_planted_parameters_are_found(planted: list[tuple[Piece, str]]) -> None:
    text = "".join(piece + separator for (piece, _), separator in planted)

    found = list(parameters(text))

    assert [name for _, _, name in found] == [name for (_, names), _ in planted for name in names]
    assert all(text[start:end] == f":{name}" for start, end, name in found)


@pytest.mark.parametrize(
    ("opening", "what"),
    [
        ("'it''s", "a quoted string"),
        ("e'it\\'s", "a quoted string"),
        ("E'ends in \\", "a quoted string"),
        ('"na""me', "a quoted identifier"),
        ("/* a /* b */", "a comment"),
        ("$$ a $ b", "the dollar quote $$"),
        ("$tag$ a $$ $Tag$", "the dollar quote $tag$"),
    ],
)
@given(before=st.lists(without_parameters, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_text_that_is_not_closed_is_refused_where_it_opens(opening: str, what: str, before: list[str]) -> None:
    prefix = "".join(f"{piece} " for piece in before)

    with pytest.raises(LexerError, match="is never closed") as caught:
        list(parameters(f"{prefix}{opening} :x"))

    assert str(caught.value) == f"{what} is never closed"
    assert caught.value.position == len(prefix)


expressions: st.SearchStrategy[Expression] = st.one_of(
    inner.map(lambda value: (string(value), value)),
    inner.map(lambda value: (escape_string(value), value)),
    dollar_quotes.map(lambda pair: (dollar_quote(*pair), pair[1])),
    inner.map(lambda name: (f"(select 'is' as {identifier('i' + name)})", "is")),
    names.map(lambda name: (f":{name}::text", None)),
    names.map(lambda name: (f"(:{name} ::text)", None)),
    st.just(("(array['a', 'b'])[1:2]::text", "{a,b}")),
)
comments = st.one_of(st.just(""), line_comments, block_comments)


@pytest.fixture(scope="module")
def connection(server: embedded.Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def ask(connection: psycopg.Connection) -> Callable[[str, list[str]], tuple[int, list[str]]]:
    """Prepares and runs a text, gives the number of its parameters and the only row."""

    def ask(text: str, values: list[str]) -> tuple[int, list[str]]:
        connection.pgconn.prepare(b"asked", text.encode())
        described = connection.pgconn.describe_prepared(b"asked")
        connection.execute("deallocate asked")
        row = psycopg.RawCursor(connection).execute(text.encode(), values).fetchone()
        return described.nparams, list(row or ())

    return ask


@given(st.lists(st.tuples(expressions, comments), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_the_server_reads_a_text_as_we_do(
    ask: Callable[[str, list[str]], tuple[int, list[str]]], planted: list[tuple[Expression, str]]
) -> None:
    source = "select " + ", ".join(f"{comment} {text}" for (text, _), comment in planted)

    text, found = _number(Path("sql/some/file.sql"), source, 0)
    nparams, row = ask(text, [f"value of :{name}" for name in found])

    assert nparams == len(found)
    used = iter([f"value of :{name}" for _, _, name in parameters(source)])
    assert row == [next(used) if value is None else value for (_, value), _ in planted]
