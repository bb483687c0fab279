"""``crafely usage reconcile``: what it prints. What it finds is tests/store/test_usage_reconcile.py's."""

import json
from datetime import date
from typing import Any

import psycopg
import pytest

from crafely.cli.usage import MAX_SHOWN, _spans
from tests.cli.conftest import Command, Serving, crafely

INSERT_KEY = "insert into api_keys (id, key_id, hashed_key, user_id) values ('key_1', 'one', 'hash', 'alice')"
INSERT_USAGE = """
    insert into usage (user_id, api_key_id, created_at, model, cost)
    select 'alice', 'key_1', '2026-11-30T23:59:59Z', '[bold]' || n, 0.0000004 from generate_series(1, %s) n
"""


@pytest.fixture
def reconcile(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], superuser: Any
) -> Command:
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    superuser.execute(INSERT_KEY)
    return Command(capsys, "usage", "reconcile")


def test_nothing_differs_where_nothing_is(reconcile: Command) -> None:
    assert reconcile() == 0
    assert (reconcile.out, reconcile.err) == ("", "the daily sums are what the records add up to\n")
    assert reconcile("--json") == 0
    assert (reconcile.out, reconcile.err) == ("[]\n", "")


def test_a_difference_is_a_line_with_both_sides(reconcile: Command, superuser: psycopg.Connection) -> None:
    superuser.execute(INSERT_USAGE, [1])
    superuser.execute(
        "insert into usage_daily (user_id, day, records, tokens_in, tokens_out, tokens_total, cost)"
        " values ('bob', '2025-01-01', 3, 0, 0, 0, 1)"
    )

    assert reconcile() == 1

    lines = [" ".join(line.split()) for line in reconcile.out.splitlines() if "20" in line]
    assert lines == [
        "2025-01-01 bob – – – – – ≠ 3 – ≠ 0 – ≠ 0 – ≠ 0 – ≠ 1.000000000000",
        "2026-11-30 alice – [bold]1 – usd 1 ≠ – 0 ≠ – 0 ≠ – 0 ≠ – 0.000000400000 ≠ –",
    ]
    assert reconcile.err == "2 groups differ\n"
    # The range and the user leave out what they should, and nothing was changed by looking.
    assert reconcile("--to", "2025-01-02", "--json") == 1
    assert [one["userId"] for one in json.loads(reconcile.out)] == ["bob"]
    assert reconcile("--user", "alice", "--json") == 1
    [alice] = json.loads(reconcile.out)
    assert (alice["day"], alice["rawCost"], alice["dailyCost"]) == ("2026-11-30", "0.000000400000", None)
    assert reconcile("--from", "2025-01-02", "--to", "2026-11-30") == 0


def test_of_very_many_differences_the_first_are_shown(reconcile: Command, superuser: psycopg.Connection) -> None:
    superuser.execute(INSERT_USAGE, [MAX_SHOWN + 5])
    assert reconcile("--json") == 1
    assert len(json.loads(reconcile.out)) == MAX_SHOWN
    assert reconcile.err == f"only the first {MAX_SHOWN} differences are shown\n"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--from", "yesterday"], "--from: expected a day, such as 2026-11-30"),
        (["--from", "2026-11-30", "--to", "2026-11-30"], "--to: expected a later day than --from"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(reconcile: Command, options: list[str], named: str) -> None:
    assert reconcile(*options) == 2
    (line,) = reconcile.err.splitlines()
    assert named in line


def day(month: int, day: int = 1) -> date:
    return date(2026, month, day)


@pytest.mark.parametrize(
    ("wanted", "months", "spans"),
    [
        ((None, None), [], [(None, None)]),
        ((None, None), [9, 11], [(None, day(9)), (day(9), day(11)), (day(11), day(12)), (day(12), None)]),
        ((day(9), day(12)), [9, 11], [(day(9), day(11)), (day(11), day(12))]),
        ((day(9, 5), day(9, 6)), [9, 11], [(day(9, 5), day(9, 6))]),
        ((day(10, 5), None), [9, 11], [(day(10, 5), day(11)), (day(11), day(12)), (day(12), None)]),
    ],
)
def test_a_range_is_cut_at_the_months_and_nothing_falls_between(
    wanted: tuple[date | None, date | None], months: list[int], spans: list[tuple[date | None, date | None]]
) -> None:
    assert list(_spans(wanted, [day(month) for month in months])) == spans


def test_it_looks_at_the_embedded_database_while_that_is_served(served: Serving) -> None:
    assert served.request("POST", "/v1/usage", served.key, [{"tokensIn": 1}, {"cost": "2"}])[0] == 201
    assert served.request("POST", "/v1/usage", served.key, {"eventId": "e"})[0] == 201
    done = crafely(served.folder, "usage", "reconcile")
    assert (done.returncode, done.stdout) == (0, "")
