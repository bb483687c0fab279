"""Signatures and SQL files of the test's own, in a folder of the test's own, on a real database."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crafely.db import embedded, query
from crafely.db.contract import style
from crafely.db.header import SqlFileError
from crafely.db.query import Executor, NoRowError, Row, TooManyRowsError, sql
from crafely.db.session import Database, Session

# Writes the file of a function of this module: its text, and what it is called.
Write = Callable[[str, str], Path]


class Thing(Row, frozen=True):
    value: Any


async def thing(db: Executor, *, value: Any) -> Thing:
    raise NotImplementedError


async def things(db: Executor, *, value: Any) -> list[Thing]:
    raise NotImplementedError


async def maybe_thing(db: Executor, *, value: Any) -> Thing | None:
    raise NotImplementedError


async def count(db: Executor, *, value: Any) -> int:
    raise NotImplementedError


async def nothing(db: Executor, *, value: Any) -> None:
    raise NotImplementedError


async def only_column(db: Executor) -> list[str]:
    raise NotImplementedError


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr(query, "folder", lambda: tmp_path)
    monkeypatch.setattr(query, "statements", {})
    (tmp_path / "test_query").mkdir()

    def write(source: str, name: str) -> Path:
        path = tmp_path / "test_query" / f"{name}.sql"
        path.write_text(source)
        return path

    return write


@pytest.fixture
def database_url(server: embedded.Server, template: str) -> str:
    """No table is touched here, so one database will do for all; the template has brought the roles."""
    return server.url


@pytest.fixture
async def one_connection(database_url: str) -> AsyncIterator[Session]:
    """A session whose statements all run on the same connection."""
    database = Database(database_url, size=1, pool_timeout=5, statement_timeout=10, roles=["crafely_app"])
    await database.open()
    yield database.session("crafely_app")
    await database.close()


def header(name: str, returns: str) -> str:
    return f"-- sql/test_query/{name}.sql\n-- Something.\n-- returns: {returns}\n"


def declare(write: Write, function: Callable[..., Awaitable[Any]], returns: str, body: str) -> Callable[..., Any]:
    """A function of this module, with this body."""
    write(header(function.__name__, returns) + body, function.__name__)
    query.statements.clear()
    return sql(function)


TOP = "-- sql/test_query/thing.sql\n"
SAYS = "-- Something.\n"
RETURNS = "-- returns: one Thing\n"
SELECT = "select :value as value;\n"


@pytest.mark.parametrize(
    ("source", "line", "problem"),
    [
        (
            "-- sql/other/thing.sql\n" + SAYS + RETURNS + SELECT,
            1,
            "the first line must be «-- sql/test_query/thing.sql»",
        ),
        (TOP + RETURNS + SELECT, 2, "a line is missing that says what the statement does"),
        (TOP + SAYS + SELECT, 1, "«returns» is missing"),
        (TOP + SAYS + RETURNS + "-- use: things_pkey\n" + SELECT, 4, "«use» is no word of a header"),
        (TOP + SAYS + RETURNS + RETURNS + SELECT, 4, "«returns» is said twice"),
        (TOP + SAYS + RETURNS + "-- And more.\n" + SELECT, 4, "the description ends where the first word begins"),
        (TOP + SAYS + "-- returns: many Thing\n" + SELECT, 3, "the signature says «one Thing»"),
        (TOP + SAYS + "-- returns: one Other\n" + SELECT, 3, "the signature says «one Thing»"),
        (TOP + SAYS + RETURNS + "-- role: postgres\n" + SELECT, 4, "«role: postgres» is not one of crafely_app"),
        (TOP + SAYS + RETURNS + "-- uses: drop table\n" + SELECT, 4, "«uses: drop table» is not a name"),
        (TOP + SAYS + RETURNS + "-- scans: things\n" + SELECT, 4, "must be «scans: TABLE, because REASON»"),
        (TOP + SAYS + RETURNS + "select 1\nas value;\n", 1, "the signature's parameter value is used nowhere"),
        (TOP + SAYS + RETURNS + "select ':value'\nas value;\n", 1, "the signature's parameter value is used nowhere"),
        (
            TOP + SAYS + RETURNS + "select :value as value\nwhere :other;\n",
            5,
            ":other is no parameter of the signature",
        ),
        (TOP + SAYS + RETURNS + "select :value,\n'it''s\n;", 5, "a quoted string is never closed"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_file_and_line(
    write: Write, source: str, line: int, problem: str
) -> None:
    write(source, "thing")

    with pytest.raises(SqlFileError) as caught:
        sql(thing)

    assert str(caught.value).startswith(f"sql/test_query/thing.sql:{line}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert query.statements == {}


def test_a_signature_without_a_file_is_refused(write: Write) -> None:
    with pytest.raises(
        SqlFileError, match=r"^sql/test_query/thing.sql:1: no such file, but .*test_query.thing needs it"
    ):
        sql(thing)


def test_two_functions_cannot_claim_one_file(write: Write) -> None:
    declare(write, thing, "one Thing", SELECT)

    with pytest.raises(SqlFileError, match="two functions claim it"):
        sql(thing)


def test_a_file_that_no_function_claims_is_found(write: Write) -> None:
    declare(write, thing, "one Thing", SELECT)
    write("select 1", "stray")

    [finding] = style.orphans()

    assert str(finding).startswith("sql/test_query/stray.sql:1: signature: no function of the store claims this file")


async def test_wrong_arguments_are_a_type_error(write: Write, alice: Session) -> None:
    run = declare(write, thing, "one Thing", "select :value::text as value;")

    for wrong in ({}, {"other": 1}, {"value": 1, "other": 2}):
        with pytest.raises(TypeError):
            await run(alice, **wrong)


async def test_exactly_one_row(write: Write, alice: Session) -> None:
    run = declare(write, thing, "one Thing", "select g as value from generate_series(1, :value::int) g;")

    assert await run(alice, value=1) == Thing(1)
    with pytest.raises(NoRowError, match=r"^test_query/thing gave no row$"):
        await run(alice, value=0)
    with pytest.raises(TooManyRowsError, match="gave 2 rows, and at most one was meant"):
        await run(alice, value=2)


async def test_at_most_one_row(write: Write, alice: Session) -> None:
    run = declare(write, maybe_thing, "maybe Thing", "select g as value from generate_series(1, :value::int) g;")

    assert await run(alice, value=1) == Thing(1)
    assert await run(alice, value=0) is None
    with pytest.raises(TooManyRowsError):
        await run(alice, value=3)


async def test_many_rows_in_order(write: Write, alice: Session) -> None:
    run = declare(write, things, "many Thing", "select g as value from generate_series(1, :value::int) g order by -g;")

    assert await run(alice, value=3) == [Thing(3), Thing(2), Thing(1)]
    assert await run(alice, value=0) == []


async def test_how_many_rows_were_touched_and_nothing_at_all(write: Write, alice: Session) -> None:
    counted = declare(write, count, "count", "select from generate_series(1, :value::int);")
    silent = declare(write, nothing, "nothing", "select from generate_series(1, :value::int);")

    assert await counted(alice, value=3) == 3
    assert await counted(alice, value=0) == 0
    assert await silent(alice, value=3) is None


async def test_one_column_comes_without_a_row_around_it(write: Write, alice: Session) -> None:
    run = declare(write, only_column, "many str", "select v from (values ('a'), ('b')) t (v) order by v;")

    assert await run(alice) == ["a", "b"]


class Pair(Row, frozen=True):
    first_name: str
    last_name: str


class Nested(Row, frozen=True):
    pairs: list[Pair]


async def pair(db: Executor) -> Pair:
    raise NotImplementedError


async def nested(db: Executor) -> Nested:
    raise NotImplementedError


async def test_columns_are_taken_by_their_place_and_leave_in_camel_case(write: Write, alice: Session) -> None:
    row = await declare(write, pair, "one Pair", "select 'Ada' as first_name, 'Lovelace' as last_name;")(alice)

    assert row == Pair("Ada", "Lovelace")
    assert msgspec.json.encode(row) == b'{"firstName":"Ada","lastName":"Lovelace"}'


async def test_jsonb_that_holds_rows_becomes_rows(write: Write, alice: Session) -> None:
    body = """select jsonb_build_array(jsonb_build_object('firstName', 'Ada', 'lastName', 'Lovelace')) as pairs;"""

    assert await declare(write, nested, "one Nested", body)(alice) == Nested([Pair("Ada", "Lovelace")])


AWKWARD = "quote ' and \" and \\ and {braces}, NULL,\n\ttab, é 名 🎈 $1 :x /* -- */"

# What goes in, as which type; it must come back equal and of the same Python type.
ROUND_TRIPS = [
    ("text", AWKWARD),
    ("text", ""),
    ("text", "NULL"),
    ("bigint", 0),
    ("bigint", -1),
    ("bigint", 2**63 - 1),
    ("integer", 2**31 - 1),
    ("boolean", True),
    ("boolean", False),
    ("numeric(20, 12)", Decimal("0.000000000001")),
    ("numeric(20, 12)", Decimal("99999999.999999999999")),
    ("numeric(12, 2)", Decimal("19.99")),
    ("timestamptz", datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)),
    ("timestamptz", datetime(1, 1, 1, tzinfo=UTC)),
    ("timestamptz", datetime.max.replace(tzinfo=UTC)),
    ("date", date(2024, 2, 29)),
    ("text[]", []),
    ("text[]", ["", "NULL", "null", '"', "\\", "{}", "a,b", "line\nbreak", " spaces ", AWKWARD]),
    ("bigint[]", [1, -2, 2**40]),
    ("timestamptz[]", [datetime(2026, 1, 1, tzinfo=UTC), datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)]),
    ("jsonb", msgspec.Raw(b'{"a": "\xc3\xa9 \\" \\\\ \\n", "b": [1.10, 1e2, null, {}], "\xe5\x90\x8d": true}')),
    ("jsonb", msgspec.Raw(b"null")),
    *((kind, None) for kind in ("text", "bigint", "boolean", "numeric", "timestamptz", "date", "text[]", "jsonb")),
]


@pytest.mark.parametrize(("kind", "value"), ROUND_TRIPS, ids=lambda v: v if isinstance(v, str) and v != AWKWARD else "")
async def test_values_come_back_as_they_went(write: Write, alice: Session, kind: str, value: object) -> None:
    run = declare(write, thing, "one Thing", f"select :value::{kind} as value;")

    got = (await run(alice, value=value)).value

    if isinstance(value, msgspec.Raw):
        # As jsonb writes it: 1e2 is 100 there.
        assert bytes(got) == bytes(value).replace(b"1e2", b"100")
    else:
        assert got == value
        assert isinstance(got, type(value))
    assert not isinstance(value, datetime) or got.utcoffset() == value.utcoffset()


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), max_size=5),
    place=st.integers(0, 5),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_list_of_texts_comes_back_as_it_went(
    write: Write, alice: Session, texts: list[str], place: int
) -> None:
    run = declare(write, thing, "one Thing", "select :value::text[] as value;")
    with_null: list[str | None] = [*texts[:place], None, *texts[place:]]

    assert (await run(alice, value=texts)).value == texts
    assert (await run(alice, value=with_null)).value == with_null


async def test_the_text_of_a_decimal_has_no_exponent(write: Write, alice: Session) -> None:
    run = declare(write, thing, "one Thing", "select :value::numeric(20, 12) as value;")

    assert str((await run(alice, value=Decimal("1e-12"))).value) == "0.000000000001"


async def test_pg_stat_activity_names_the_file(
    write: Write, one_connection: Session, superuser: psycopg.Connection
) -> None:
    run = declare(write, thing, "one Thing", "with own as (select :value::int as value)\nselect value from own;")
    await run(one_connection, value=1)

    seen = superuser.execute(
        "select query from pg_stat_activity where query like '%test_query/thing%' and pid <> pg_backend_pid()"
    )

    assert seen.fetchall() == [
        ("with /* crafely:test_query/thing */ own as (select $1::int as value)\nselect value from own;",)
    ]


async def test_pg_stat_statements_names_the_file(write: Write, alice: Session, superuser: psycopg.Connection) -> None:
    (preloaded,) = superuser.execute("show shared_preload_libraries").fetchone() or ("",)
    if "pg_stat_statements" not in preloaded:
        pytest.skip("this server does not preload pg_stat_statements")
    superuser.execute("create extension if not exists pg_stat_statements")
    run = declare(write, thing, "one Thing", "select :value::text || 'seen' as value;")

    await run(alice, value="a")
    await run(alice, value="b")

    seen = superuser.execute("select query, calls from pg_stat_statements where query like '%seen%' or calls = 2")
    assert ("select /* crafely:test_query/thing */ $1::text || $2 as value", 2) in seen.fetchall()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", [1, 40_000, 2**31, 2**62, -1, None, 0]),
        ("boolean", [True, None, False]),
        ("numeric", [Decimal(1), None, Decimal("1e-12")]),
        ("text[]", [[], None, ["a"]]),
        ("jsonb", [msgspec.Raw(b"1"), None]),
        ("timestamptz", [datetime(2026, 1, 1, tzinfo=UTC), None]),
    ],
)
@pytest.mark.direct(reason="behind a pooler nothing is prepared")
async def test_one_statement_is_prepared_once_whatever_its_values(
    write: Write, one_connection: Session, kind: str, values: list[object]
) -> None:
    run = declare(write, thing, "one Thing", f"select :value::{kind} as value;")
    for value in values:
        await run(one_connection, value=value)

    body = "select statement as value from pg_prepared_statements where statement like :value;"
    prepared = await declare(write, things, "many Thing", body)(one_connection, value="%test_query/thing %")

    assert prepared == [Thing(f"select /* crafely:test_query/thing */ $1::{kind} as value;")]


async def test_a_nul_in_a_text_is_refused_and_the_connection_lives_on(write: Write, one_connection: Session) -> None:
    run = declare(write, thing, "one Thing", "select :value::text as value;")

    with pytest.raises(psycopg.DataError):
        await run(one_connection, value="a\0b")
    assert (await run(one_connection, value="ab")).value == "ab"


async def test_statements_of_many_tasks_do_not_mix(write: Write, alice: Session) -> None:
    run = declare(write, thing, "one Thing", "select :value::int as value;")

    rows = await asyncio.gather(*(run(alice, value=n) for n in range(200)))

    assert [row.value for row in rows] == list(range(200))
