"""The form of the recording statement that Citus takes does what the other one does, on whatever batches."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from crafely.db.session import Database
from crafely.store import usage
from tests.store.test_usage import raw, rollup_equals_rows

FORMS = {"plain": usage.record, "spread": usage.record_distributed}
USERS = ["ann", "ben", "cyd"]
NOW = datetime.now(UTC).replace(microsecond=0)
# What each form has left, but for ids and the moment, which no two calls share.
LEFT = """
    select replace(u.user_id, %(form)s, ''), u.provider, u.model, u.type, u.currency, u.tokens_in, u.tokens_out,
        u.tokens_total, u.cost, u.metadata, u.event_id, u.created_at,
        exists (select from usage_events e where (e.user_id, e.event_id, e.usage_id) = (u.user_id, u.event_id, u.id))
    from usage u
    where u.user_id like %(form)s || '%%'
    order by 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12
"""
SUMS = """
    select replace(user_id, %(form)s, ''), day, provider, model, type, currency, records, tokens_in, tokens_out,
        tokens_total, cost, updated_at >= created_at
    from usage_daily
    where user_id like %(form)s || '%%'
    order by 1, 2, 3, 4, 5, 6
"""
EVENTS = """
    select replace(e.user_id, %(form)s, ''), e.event_id, exists (select from usage u where u.id = e.usage_id)
    from usage_events e
    where e.user_id like %(form)s || '%%'
    order by 1, 2
"""


@pytest.fixture
def users(superuser: psycopg.Connection) -> None:
    """For each form the same users, each with a key; their names begin with the form's."""
    for form in FORMS:
        for user in USERS:
            superuser.execute(
                "insert into api_keys (id, user_id, key_id, name, hashed_key, prefix, permissions)"
                " values (%(id)s::text, %(user)s, %(id)s::text, 'k', 'h', 'crf', '{}')",
                {"id": f"key{form}{user}", "user": f"{form}{user}"},
            )


def batch(rng: random.Random) -> list[dict[str, Any]]:
    """Records of several users: some with events, also twice and of earlier batches, some against a wrong key."""
    records: list[dict[str, Any]] = []
    for _ in range(rng.choice([0, 1, 2, 5, 40])):
        record: dict[str, Any] = {"user": rng.choice(USERS), "currency": rng.choice(["usd", "eur"])}
        record["key"] = record["user"] if rng.random() < 0.85 else rng.choice([*USERS, "nobody"])
        if rng.random() < 0.6:
            record["event_id"] = f"event {rng.randrange(12)}"
        for column in ("provider", "model", "type"):
            if rng.random() < 0.6:
                record[column] = rng.choice(["x", "y", "O'Hara \\"])
        for column in ("tokens_in", "tokens_out", "tokens_total"):
            if rng.random() < 0.6:
                record[column] = rng.randrange(1000)
        if rng.random() < 0.6:
            record["cost"] = f"0.{rng.randrange(10**12):012}"
        if rng.random() < 0.3:
            record["metadata"] = {"n": rng.randrange(3)}
        record["created_at"] = NOW - timedelta(hours=rng.randrange(24 * 34), seconds=len(records))
        records.append(record)
    return records


def given_to(form: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **{name: value for name, value in record.items() if name not in {"user", "key"}},
            "user_id": f"{form}{record['user']}",
            "api_key_id": f"key{form}{record['key']}",
        }
        for record in records
    ]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.usefixtures("users")
async def test_both_forms_do_the_same(database: Database, superuser: psycopg.Connection, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test's, to be repeated
    meter = database.session("crafely_meter")
    firsts: dict[str, dict[Any, str]] = {form: {} for form in FORMS}
    for _ in range(8):
        records = batch(rng)
        answers = {form: await call(meter, records=raw(given_to(form, records))) for form, call in FORMS.items()}
        statuses = {form: [answer.status for answer in told] for form, told in answers.items()}
        assert statuses["plain"] == statuses["spread"]
        for form, told in answers.items():
            for record, answer in zip(records, told, strict=True):
                assert (answer.id is None) == (answer.status == "unknown_key")
                event = (record["user"], record.get("event_id"))
                if answer.status == "recorded" and event[1] is not None:
                    firsts[form][event] = str(answer.id)
                if answer.status == "duplicate":
                    assert answer.id == firsts[form][event]
    for query in (LEFT, SUMS, EVENTS):
        plain, spread = (superuser.execute(query.encode(), {"form": form}).fetchall() for form in FORMS)
        assert plain == spread
        assert plain
    assert rollup_equals_rows(superuser)
    ids = superuser.execute("select count(*), count(distinct id) from usage").fetchone()
    assert ids is not None
    assert ids[0] == ids[1] > 0


@pytest.mark.usefixtures("users")
async def test_sums_are_stamped_when_they_are_added_to(database: Database, superuser: psycopg.Connection) -> None:
    meter = database.session("crafely_meter")
    one = raw([{"user_id": "spreadann", "api_key_id": "keyspreadann"}])
    stamps = []
    for _ in range(2):
        await usage.record_distributed(meter, records=one)
        stamps += superuser.execute("select created_at, updated_at from usage_daily").fetchall()

    assert stamps[0][0] == stamps[0][1] == stamps[1][0] < stamps[1][1]
