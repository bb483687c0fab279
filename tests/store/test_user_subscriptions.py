"""Subscriptions: one active for a package, ended by hand or by date."""

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from crafely.db.session import Session
from crafely.store import user_subscriptions
from crafely.store.user_subscriptions import UserSubscription

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def sold(superuser: psycopg.Connection) -> None:
    """Two packages that are sold and one that is not."""
    superuser.execute("""
        insert into packages (id, name, price, features, active) values
            ('pkg_basic', 'Basic', 1, '{chat,export}', true),
            ('pkg_pro', 'Pro', 2, '{chat,api}', true),
            ('pkg_old', 'Old', 3, '{}', false)
    """)


async def subscribe(
    session: Session, package_id: str = "pkg_basic", start: datetime | None = None, end: datetime | None = None
) -> UserSubscription:
    made = await user_subscriptions.create(
        session, user_id="alice", package_id=package_id, start_date=start, end_date=end
    )
    assert made is not None
    return made


async def test_a_subscription_begins_now_and_has_no_end_unless_it_is_said(alice: Session) -> None:
    made = await subscribe(alice)

    assert made.id.startswith("sub_")
    assert (made.status, made.user_id, made.package_id) == ("active", "alice", "pkg_basic")
    assert (made.start_date, made.end_date) == (made.created_at, None)
    assert await user_subscriptions.get(alice, id=made.id, user_id="alice") == made


async def test_only_a_package_that_is_sold_can_be_subscribed_to(alice: Session) -> None:
    for package_id in ("pkg_old", "pkg_none"):
        assert (
            await user_subscriptions.create(
                alice, user_id="alice", package_id=package_id, start_date=None, end_date=None
            )
            is None
        )


async def test_a_subscription_cannot_end_before_it_begins(alice: Session) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        await subscribe(alice, start=NOW, end=NOW - DAY)

    assert caught.value.diag.constraint_name == "user_subscriptions_end_date_check"


async def test_of_twenty_at_once_one_becomes_active(alice: Session, superuser: psycopg.Connection) -> None:
    answers = await asyncio.gather(*(subscribe(alice) for _ in range(20)), return_exceptions=True)

    assert sum(isinstance(a, UserSubscription) for a in answers) == 1
    refused = [a for a in answers if isinstance(a, psycopg.errors.UniqueViolation)]
    assert {e.diag.constraint_name for e in refused} == {"user_subscriptions_user_id_package_id_idx"}
    assert len(refused) == 19
    assert superuser.execute("select from user_subscriptions").rowcount == 1


async def test_a_subscription_is_nobody_elses(alice: Session, bob: Session) -> None:
    made = await subscribe(alice)

    for session, user_id in ((bob, "bob"), (bob, "alice"), (alice, "bob")):
        assert await user_subscriptions.get(session, id=made.id, user_id=user_id) is None
        assert await user_subscriptions.cancel(session, id=made.id, user_id=user_id) is None
        assert (await user_subscriptions.current(session, user_id=user_id)).subscriptions == []


async def test_a_cancelled_one_ends_now_and_makes_room_for_the_next(alice: Session) -> None:
    made = await subscribe(alice, start=NOW - DAY, end=NOW + DAY)

    cancelled = await user_subscriptions.cancel(alice, id=made.id, user_id="alice")

    assert cancelled is not None
    assert cancelled.status == "cancelled"
    assert cancelled.end_date == cancelled.updated_at
    assert await user_subscriptions.cancel(alice, id=made.id, user_id="alice") is None
    assert (await subscribe(alice)).status == "active"


async def test_one_that_has_not_begun_ends_where_it_would_have_begun(alice: Session) -> None:
    made = await subscribe(alice, start=NOW + DAY)

    cancelled = await user_subscriptions.cancel(alice, id=made.id, user_id="alice")

    assert cancelled is not None
    assert cancelled.end_date == made.start_date == NOW + DAY


async def test_what_a_user_has_now(alice: Session, superuser: psycopg.Connection) -> None:
    nothing = await user_subscriptions.current(alice, user_id="alice")
    assert (nothing.features, nothing.subscriptions) == ([], [])

    basic = await subscribe(alice, "pkg_basic", start=NOW - 2 * DAY, end=NOW + DAY)
    pro = await subscribe(alice, "pkg_pro", start=NOW - DAY)
    both = await user_subscriptions.current(alice, user_id="alice")
    # Every feature once, in alphabetical order; the newest subscription first.
    assert both.features == ["api", "chat", "export"]
    assert [(s.id, s.package_name) for s in both.subscriptions] == [(pro.id, "Pro"), (basic.id, "Basic")]
    assert both.subscriptions[1].end_date == NOW + DAY

    # A package that is no longer sold still gives what was paid for.
    superuser.execute("update packages set active = false")
    assert await user_subscriptions.current(alice, user_id="alice") == both


@pytest.mark.parametrize(
    ("start", "end", "status"),
    [
        (NOW + DAY, None, "active"),
        (NOW - 2 * DAY, NOW - DAY, "active"),
        (NOW - DAY, None, "cancelled"),
        (NOW - DAY, None, "expired"),
    ],
    ids=["not begun", "ended, and housekeeping has not seen it yet", "cancelled", "expired"],
)
async def test_what_counts_for_nothing_now(
    alice: Session, superuser: psycopg.Connection, start: datetime, end: datetime | None, status: str
) -> None:
    await subscribe(alice, start=start, end=end)
    superuser.execute("update user_subscriptions set status = %s", [status])

    current = await user_subscriptions.current(alice, user_id="alice")

    assert (current.features, current.subscriptions) == ([], [])


async def test_housekeeping_ends_what_has_ended_and_nothing_else(alice: Session, admin: Session) -> None:
    ended = await subscribe(alice, "pkg_basic", start=NOW - 2 * DAY, end=NOW - DAY)
    cancelled = await subscribe(alice, "pkg_pro", start=NOW - 2 * DAY)
    await user_subscriptions.cancel(alice, id=cancelled.id, user_id="alice")
    running = await subscribe(alice, "pkg_pro", start=NOW - DAY, end=NOW + DAY)

    assert await user_subscriptions.expire(admin) == 1
    assert await user_subscriptions.expire(admin) == 0

    found = {
        s.id: s.status
        for s in await user_subscriptions.list_for_user(
            alice, user_id="alice", before=datetime.max.replace(tzinfo=UTC), before_id="", take=10, skip=0
        )
    }
    assert found == {ended.id: "expired", cancelled.id: "cancelled", running.id: "active"}
    assert (await subscribe(alice, "pkg_basic")).status == "active"
