"""``crafely audit verify``: what it prints. What it finds is tests/store/test_audit_log.py's."""

import json
from typing import Any

import psycopg
import pytest

from crafely.cli.audit import _named
from tests.cli.conftest import Command

SEAL = "select head from seal_audit_log()"


@pytest.fixture
def verify(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], superuser: Any
) -> Command:
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    # Not through audit_change(), so that a test knows the moment.
    superuser.execute(
        "insert into audit_log (created_at, actor_role, table_name, row_id, action, transaction_id)"
        " select date_trunc('month', now(), 'utc'), 'x', 'agents', n, 'insert', '3' from generate_series(1, 5) n"
    )
    return Command(capsys, "audit", "verify")


def test_a_trail_that_is_as_it_was_is_one_line_with_its_head(verify: Command, superuser: psycopg.Connection) -> None:
    assert verify() == 0
    assert verify.out == "0 rows are as 0 seals have them; the head is none yet\n"
    assert verify.err.startswith("5 rows since ")
    row = superuser.execute(SEAL).fetchone()
    assert row is not None
    assert verify() == 0
    assert (verify.out, verify.err) == (f"5 rows are as 1 seals have them; the head is {row[0]}\n", "")
    assert verify("--head", row[0].upper()) == 0
    assert verify.json() == {
        "seals": 1,
        "rows": 5,
        "head": row[0],
        "unsealed": {"rowCount": 0, "since": None},
        "findings": [],
    }


def test_each_finding_is_a_line_and_an_object(verify: Command, superuser: psycopg.Connection) -> None:
    superuser.execute(SEAL)
    superuser.execute("delete from audit_log where id in (1, 3, 4); update audit_log set row_id = '' where id = 2")
    assert verify("--head", "0" * 64) == 1
    assert verify.out.splitlines() == [
        "seal 1: row 2 was altered",
        "seal 1: rows 1, 3–4 were removed",
        "the head that was kept is not in the chain: it was recomputed, or its end cut off",
    ]
    assert verify("--json") == 1
    assert json.loads(verify.out)["findings"] == [
        {"finding": "seal 1: row 2 was altered", "seal": 1, "rows": [2]},
        {"finding": "seal 1: rows 1, 3–4 were removed", "seal": 1, "rows": [1, 3, 4]},
    ]


def test_of_many_rows_some_are_named(verify: Command, superuser: psycopg.Connection) -> None:
    superuser.execute(
        "insert into audit_log (actor_role, table_name, row_id, action, transaction_id)"
        " select 'x', 'agents', n, 'insert', '3' from generate_series(1, 200) n"
    )
    superuser.execute(SEAL)
    superuser.execute("update audit_log set actor_role = 'y'")
    assert verify() == 1
    assert verify.out.splitlines() == [
        "seal 1: rows 1–100 were altered",
        "seal 1: more rows than these are not as they were sealed",
    ]


def test_of_made_up_ranges_no_row_is_looked_for(verify: Command, superuser: psycopg.Connection) -> None:
    superuser.execute(SEAL)
    superuser.execute("update audit_seals set row_ids = '{[1,9000000000000)}', row_digest = ''")
    assert verify() == 1
    assert verify.out.splitlines()[0] == "seal 1 is not as it was made, after seal 0"


@pytest.mark.parametrize("head", ["", "x" * 64, "0" * 63])
def test_a_head_that_is_none_is_wrong_usage(verify: Command, head: str) -> None:
    assert verify("--head", head) == 2
    assert "--head: expected 64 hexadecimal digits" in verify.err


@pytest.mark.parametrize(
    ("ids", "text"), [([7], "row 7 was"), ([1, 2, 3, 9], "rows 1–3, 9 were"), ([9, 8], "rows 8–9 were")]
)
def test_ids_in_a_sentence(ids: list[int], text: str) -> None:
    assert _named("row", ids) == text
