"""Every list of the store in pages: everything once, newest first, whatever shares a moment or arrives in between."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crafely.db.session import Session
from crafely.store import agents, api_keys, packages, threads, usage, user_subscriptions

END = datetime.max.replace(tzinfo=UTC)
USAGE = {"from_time": datetime(2000, 1, 1, tzinfo=UTC), "provider": None, "model": None, "type": None}


class Case(msgspec.Struct, frozen=True):
    """A list: its statement and what else it takes; how a row gets into it, and what that row hangs on."""

    list_: Callable[..., Awaitable[list[Any]]]
    arguments: dict[str, Any]
    insert: str
    parent: str = "select"


AGENT = "insert into agents (id, name, instructions, user_id, created_at) values (%(id)s, 'Name', '', 'alice', %(at)s)"
KEY = (
    "insert into api_keys (id, key_id, hashed_key, user_id, created_at)"
    " values (%(id)s::text, %(id)s::text, '', 'alice', %(at)s)"
)
THREAD = "insert into threads (id, name, agent_id, user_id, created_at) values (%(id)s, 'n', 'agnt_1', 'alice', %(at)s)"
RECORD = "insert into usage (id, api_key_id, user_id, created_at) values (%(id)s, 'key_1', 'alice', %(at)s)"
PACKAGE = "insert into packages (id, name, price, created_at) values (%(id)s::text, %(id)s::text, 1, %(at)s)"
SUBSCRIPTION = (
    "insert into user_subscriptions (id, package_id, user_id, status, created_at)"
    " values (%(id)s, 'pkg_1', 'alice', 'expired', %(at)s)"
)
AN_AGENT = "insert into agents (id, name, instructions, user_id) values ('agnt_1', 'n', '', 'alice')"
A_KEY = "insert into api_keys (id, key_id, hashed_key, user_id) values ('key_1', 'k', '', 'alice')"
A_PACKAGE = "insert into packages (id, name, price) values ('pkg_1', 'p', 1)"
ALICE = {"user_id": "alice"}
OF_AGENT = {**ALICE, "agent_id": "agnt_1"}
ALL = {**ALICE, "from_time": datetime(2000, 1, 1, tzinfo=UTC), "provider": None, "model": None, "type": None}

CASES = [
    Case(agents.list_for_user, ALICE, AGENT),
    Case(agents.list_by_name, {**ALICE, "name": "na"}, AGENT),
    Case(api_keys.list_for_user, ALICE, KEY),
    Case(api_keys.list_by_active, {**ALICE, "active": True}, KEY),
    Case(threads.list_for_user, ALICE, THREAD, AN_AGENT),
    Case(threads.list_for_agent, OF_AGENT, THREAD, AN_AGENT),
    Case(usage.list_for_user, ALL, RECORD, A_KEY),
    Case(usage.list_for_api_key, {**ALL, "api_key_id": "key_1"}, RECORD, A_KEY),
    Case(packages.list_all, {"active": None}, PACKAGE),
    Case(user_subscriptions.list_for_user, ALICE, SUBSCRIPTION, A_PACKAGE),
]

# Few moments, so that many rows share one; they lie in two months, which for usage are two partitions.
MOMENTS = [datetime(2026, 10, 31, 23, 59, 59, 999999, UTC), datetime(2026, 11, 1, tzinfo=UTC)]
LATER = datetime(2026, 11, 2, tzinfo=UTC)
numbers_and_moments = st.dictionaries(st.integers(0, 999), st.sampled_from(MOMENTS), max_size=12)


async def page_by_page(session: Session, case: Case, take: int, between: Callable[[], None]) -> list[str]:
    """The ids on all pages, each asked for by the last row of the one before."""
    found: list[str] = []
    before, before_id = END, ""
    while page := await case.list_(session, **case.arguments, before=before, before_id=before_id, take=take, skip=0):
        assert len(page) <= take
        found += [row.id for row in page]
        before, before_id = page[-1].created_at, page[-1].id
        between()
    return found


async def skipping(session: Session, case: Case, take: int) -> list[str]:
    """The ids on all pages, each asked for by how many came before."""
    found: list[str] = []
    while page := await case.list_(session, **case.arguments, before=END, before_id="", take=take, skip=len(found)):
        found += [row.id for row in page]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.insert.split()[2] + "/" + case.list_.__name__)
@given(planted=numbers_and_moments, take=st.integers(1, 5))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_pages_hold_everything_once_newest_first(
    alice: Session, superuser: psycopg.Connection, case: Case, planted: dict[int, datetime], take: int
) -> None:
    with superuser.transaction():
        superuser.execute("truncate agents, threads, api_keys, packages, user_subscriptions, usage")
        superuser.execute(case.parent.encode())
        for number, at in planted.items():
            superuser.execute(case.insert.encode(), {"id": f"id_{number}", "at": at})
    newest_first = [f"id_{n}" for n, _ in sorted(planted.items(), key=lambda p: (p[1], f"id_{p[0]}"), reverse=True)]

    assert await skipping(alice, case, take) == newest_first

    arrived = iter(range(1000, 2000))

    def arrives() -> None:
        superuser.execute(case.insert.encode(), {"id": f"id_{next(arrived)}", "at": LATER})

    assert await page_by_page(alice, case, take, between=arrives) == newest_first
