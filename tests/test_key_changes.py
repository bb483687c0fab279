"""What the database tells its listeners of the keys: every change that a remembered key must not outlive."""

from collections.abc import Callable, Iterator

import psycopg
import pytest

Told = Callable[[], list[str]]


@pytest.fixture
def told(database_url: str, superuser: psycopg.Connection) -> Iterator[Told]:
    """What has been told since it was asked last."""
    with psycopg.connect(database_url, autocommit=True) as ear:
        ear.execute("listen crafely_api_keys")

        def told() -> list[str]:
            superuser.execute("select pg_notify('crafely_api_keys', 'until here')")
            heard: list[str] = []
            for notification in ear.notifies(timeout=10):
                if notification.payload == "until here":
                    return heard
                heard.append(notification.payload)
            pytest.fail("never told")

        yield told


@pytest.fixture(autouse=True)
def keys(superuser: psycopg.Connection, told: Told) -> None:
    superuser.execute(
        "insert into api_keys (key_id, hashed_key, user_id) values ('a', 'hash', 'alice'), ('b', 'hash', 'alice')"
    )
    # Nobody remembers a key that is new.
    assert told() == []


@pytest.mark.parametrize(
    "change",
    [
        "active = false",
        "permissions = '{x}'",
        "expires_at = now()",
        "hashed_key = 'other'",
        "user_id = 'bob'",
        "rate_limit = 5",
        "key_id = 'c'",
    ],
)
def test_a_change_is_told_with_the_name_that_the_key_had(
    superuser: psycopg.Connection, told: Told, change: str
) -> None:
    superuser.execute(f"update api_keys set {change} where key_id = 'a'".encode())  # noqa: S608 - of this file
    assert told() == ["a"]


def test_a_key_that_is_deleted_is_told_and_all_of_them_without_a_name(
    superuser: psycopg.Connection, told: Told
) -> None:
    superuser.execute("delete from api_keys where key_id = 'b'")
    assert told() == ["b"]
    superuser.execute("truncate api_keys cascade")
    assert told() == [""]


@pytest.mark.parametrize("change", ["last_used_at = now()", "name = 'other'"])
def test_what_no_request_depends_on_is_not_told(superuser: psycopg.Connection, told: Told, change: str) -> None:
    superuser.execute(f"update api_keys set {change}".encode())  # noqa: S608 - of this file
    assert told() == []


def test_a_change_is_told_when_it_is_committed_and_only_then(superuser: psycopg.Connection, told: Told) -> None:
    with superuser.transaction(force_rollback=True):
        superuser.execute("update api_keys set active = false")
    assert told() == []
    with superuser.transaction():
        superuser.execute("update api_keys set active = false")
    assert sorted(told()) == ["a", "b"]


@pytest.mark.parametrize("function", ["notify_api_key_change", "notify_api_keys_truncated"])
def test_nobody_but_the_triggers_calls_what_tells(superuser: psycopg.Connection, function: str) -> None:
    roles = superuser.execute(
        "select r.rolname from pg_roles r where r.rolname like 'crafely%%' and not r.rolsuper"
        " and has_function_privilege(r.oid, %s::regproc::oid, 'execute')",
        [function],
    ).fetchall()
    assert roles == []
