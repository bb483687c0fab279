"""What a serving process does by itself, with a clock that runs faster."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from crafely.api import housekeeping
from crafely.db import embedded
from tests.api.conftest import Server, introduce, serving
from tests.auth.conftest import Signer
from tests.db.harm import away

Value = list[tuple[Any, ...]]


@pytest.fixture
async def brisk(
    database_url: str, signer: Signer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Server]:
    """A server that does its housekeeping all the time, and does not wait long for a lock."""
    # Before it starts: what it does first, it does before the test's first line.
    caplog.set_level("INFO")
    for interval in ("TOUCHES", "SUBSCRIPTIONS", "PARTITIONS", "SAMPLES", "SEALS"):
        monkeypatch.setattr(housekeeping, interval, 0.05)
    async with serving(database_url, signer, statement_timeout=0.4, audit_months=2) as server:
        yield server


async def becomes(look: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Looks until it is so. The time limit is there for a failing test to end."""
    async with asyncio.timeout(60):
        while not wanted(value := look()):  # noqa: ASYNC110 - a database raises no event
            await asyncio.sleep(0.02)
    return value


def last_used(server: Server, user: str) -> Value:
    return server.sql("select last_used_at, updated_at, created_at from api_keys where user_id = %s", user)


async def test_the_last_use_of_a_key_is_written_and_is_no_change_of_it(brisk: Server) -> None:
    caller = await brisk.caller("alice", "*")
    assert last_used(brisk, "alice")[0][0] is None
    await caller.get("/v1/me")
    [(used, updated, created)] = await becomes(lambda: last_used(brisk, "alice"), lambda rows: rows[0][0] is not None)
    assert used > created == updated
    await caller.get("/v1/me")
    await becomes(lambda: last_used(brisk, "alice"), lambda rows: rows[0][0] > used)
    assert brisk.sql("select action from audit_log where table_name = 'api_keys'") == [("insert",)]


async def test_what_waits_is_written_when_the_server_stops(database_url: str, signer: Signer) -> None:
    async with serving(database_url, signer) as server:
        await (await server.caller("alice", "*")).get("/v1/me")
    assert last_used(server, "alice")[0][0] is not None


async def test_a_last_use_that_could_not_be_written_is_written_later(
    brisk: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caller = await brisk.caller("alice", "*")
    with psycopg.connect(brisk.url) as connection:
        # Whoever holds this lock lets others read and nobody write.
        connection.execute("lock table api_keys in share mode")
        await caller.get("/v1/me")
        await becomes(lambda: caplog.text, lambda text: "housekeeping failed: flush_touches" in text)
        assert last_used(brisk, "alice")[0][0] is None
    await becomes(lambda: last_used(brisk, "alice"), lambda rows: rows[0][0] is not None)


async def subscribe(server: Server) -> str:
    """An active subscription without an end."""
    api = await introduce(server)
    package = await api.admin.post("/v1/packages", {"name": "Pro", "price": "1"})
    made = await api.alice.post("/v1/user-subscriptions", {"packageId": package["id"]})
    return str(made["id"])


def end(server: Server, id: str) -> None:
    server.sql("update user_subscriptions set end_date = now() where id = %s", id)


def status(server: Server, id: str) -> str:
    return str(server.sql("select status from user_subscriptions where id = %s", id)[0][0])


async def test_a_subscription_expires_when_its_end_has_come(brisk: Server) -> None:
    subscription = await subscribe(brisk)
    end(brisk, subscription)
    await becomes(lambda: status(brisk, subscription), lambda one: one == "expired")
    trail = brisk.sql(
        "select actor_role, actor_user_id, request_id, old ->> 'status', new ->> 'status' from audit_log"
        " where row_id = %s and new ? 'status' and action = 'update'",
        subscription,
    )
    assert trail == [("crafely_admin", None, "crafely housekeeping", "active", "expired")]


@pytest.mark.parametrize("table", ["usage", "audit_log"])
async def test_the_months_ahead_are_made(brisk: Server, table: str) -> None:
    def months() -> list[str]:
        found = brisk.sql(
            "select inhrelid::regclass::text from pg_inherits"
            " where inhparent = %s::regclass and inhrelid::regclass::text not like '%%default' order by 1",
            table,
        )
        return [name for (name,) in found]

    before = months()
    assert len(before) >= 4
    brisk.sql(f"drop table {before[-1]}")
    await becomes(months, lambda now: bool(now == before))


async def test_event_ids_past_their_window_are_forgotten_and_others_kept(brisk: Server) -> None:
    api = await introduce(brisk)
    await api.alice.post("/v1/usage", [{"eventId": "old"}, {"eventId": "new"}])
    brisk.sql("update usage_events set created_at = now() - interval '41 days' where event_id = 'old'")
    await becomes(lambda: brisk.sql("select event_id from usage_events"), lambda rows: rows == [("new",)])


async def test_sizes_are_noted_once_an_hour_and_forgotten_after_some_weeks(brisk: Server) -> None:
    def times() -> list[datetime]:
        return [at for (at,) in brisk.sql("select distinct created_at from monitor_samples order by 1")]

    await becomes(times, bool)
    brisk.sql("update monitor_samples set created_at = created_at - interval '1 hour'")
    await becomes(times, lambda found: len(found) > 1)
    brisk.sql(
        "update monitor_samples set created_at = created_at - interval '36 days'"
        " where created_at = (select min(created_at) from monitor_samples)"
    )
    # They go with the next sample.
    brisk.sql(
        "update monitor_samples set created_at = created_at - interval '1 hour'"
        " where created_at = (select max(created_at) from monitor_samples)"
    )
    await becomes(times, lambda found: found[0] > datetime.now(UTC) - timedelta(days=1))


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The heads that the server has logged since it began: that was before the test did."""
    records = [*caplog.get_records("setup"), *caplog.records]
    return [record.fields["head"] for record in records if hasattr(record, "fields") and "head" in record.fields]


async def test_the_trail_is_sealed_its_head_is_logged_and_old_months_go(
    brisk: Server, caplog: pytest.LogCaptureFixture
) -> None:
    brisk.sql(
        "insert into audit_log (actor_role, table_name, row_id, action, created_at)"
        " values ('x', 'agents', 'old', 'insert', now() - interval '4 months')"
    )
    await brisk.caller("alice", "*")
    await becomes(lambda: brisk.sql("select row_id from audit_log"), lambda rows: ("old",) not in rows)
    query = "select encode(digest, 'hex') from audit_seals where kind = 'batch' order by id"
    heads = [head for (head,) in await becomes(lambda: brisk.sql(query), lambda rows: len(rows) > 1)]
    # Whoever sees a seal may be ahead of the log.
    await becomes(lambda: logged(caplog), lambda found: found[: len(heads)] == heads)
    await becomes(lambda: caplog.text, lambda text: "month of the audit trail dropped: " in text)


async def test_a_job_that_fails_is_done_when_the_database_is_back(
    server: embedded.Server, brisk: Server, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = await subscribe(brisk)
    with away(server, brisk.url):
        await becomes(lambda: caplog.text, lambda text: text.count("housekeeping failed: expire_subscriptions") > 1)
    end(brisk, subscription)
    await becomes(lambda: status(brisk, subscription), lambda one: one == "expired")


async def test_a_job_that_swallows_its_cancellation_does_not_hold_up_the_end() -> None:
    begun = asyncio.Event()

    async def job() -> None:
        begun.set()
        # What psycopg does where the statement has ended at the same moment.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    task = asyncio.create_task(housekeeping._repeat(job, 3600))
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(10):
        await task
