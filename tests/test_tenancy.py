"""No row of one user can be seen or changed by another, whatever the SQL: asked of every table, from the catalogue."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from crafely.db import embedded

ROLES = [
    "crafely_app",
    "crafely_auth",
    "crafely_meter",
    "crafely_admin",
    "crafely_monitor",
    "crafely_backup",
    "crafely_encryption",
]
# Every table whose rows belong to somebody. A new one must be named here, and is then tested like the others.
TABLES = [
    "agents",
    "api_keys",
    "audit_log",
    "idempotency_keys",
    "threads",
    "usage",
    "usage_daily",
    "usage_events",
    "user_subscriptions",
]

SEED = """
    insert into packages (id, name, price) values ('pkg_1', 'basic', 1);
    insert into api_keys (id, key_id, hashed_key, user_id) values ('key_' || {user}, 'k' || {user}, 'hash', {user});
    insert into agents (id, name, instructions, user_id) values ('agnt_' || {user}, 'name', 'secret', {user});
    insert into threads (id, name, agent_id, user_id) values ('thrd_' || {user}, 'name', 'agnt_' || {user}, {user});
    insert into user_subscriptions (package_id, user_id) values ('pkg_1', {user});
    insert into usage (api_key_id, user_id, cost) values ('key_' || {user}, {user}, 1);
    insert into usage (api_key_id, user_id, created_at) values ('key_' || {user}, {user}, '1999-01-01');
    insert into usage_events (user_id, event_id, usage_id) values ({user}, 'event', 'use_1');
    insert into idempotency_keys (user_id, key, fingerprint, status, body) values ({user}, 'key', 'f', 201, 'secret');
    insert into usage_daily (user_id, day, records, tokens_in, tokens_out, tokens_total, cost)
    values ({user}, '2026-01-01', 1, 1, 1, 1, 1);
"""


@pytest.fixture(scope="module")
def seeded(server: embedded.Server, template: str) -> Iterator[str]:
    """A database with a row of alice's in every table; one for this whole page, since every test is rolled back."""
    name = f"{template}_tenancy"
    parts: dict[str, Any] = {**conninfo_to_dict(server.url), "dbname": name}
    url = make_conninfo(**parts)
    with psycopg.connect(server.url, autocommit=True) as administrator:
        administrator.execute(f"create database {name} template {template}".encode())
        with psycopg.connect(url) as connection:
            connection.execute(SQL(SEED).format(user="alice"))
        yield url
        administrator.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def superuser(seeded: str) -> Iterator[psycopg.Connection]:
    """A connection that sees everything, in a transaction that is rolled back."""
    with psycopg.connect(seeded) as connection, connection.transaction(force_rollback=True):
        yield connection


@contextmanager
def acting(superuser: psycopg.Connection, role: str, user: str | None = None) -> Iterator[psycopg.Connection]:
    """A part of the transaction as a role for a user; None: the setting was never made."""
    with superuser.transaction():
        superuser.execute(SQL("set local role {}").format(Identifier(role)))
        if user is not None:
            superuser.execute("select set_config('crafely.user_id', %s, true)", [user])
        yield superuser
        superuser.execute("reset role")


def column(superuser: psycopg.Connection, query: str, *values: object) -> list[str]:
    return [row[0] for row in superuser.execute(query.encode(), values).fetchall()]


def tables(superuser: psycopg.Connection, kinds: str = "rp") -> list[str]:
    """Tables of ours, as their owner wrote them; of kind r (with rows), p (partitioned)."""
    return column(
        superuser,
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = any(%s::text[])"
        " and relname not like '%%yoyo%%' order by 1",
        list(kinds),
    )


def snapshot(superuser: psycopg.Connection, table: str) -> list[str]:
    return column(superuser, f"select to_jsonb(t)::text from {table} t order by 1")  # noqa: S608  # of the list above


def may(superuser: psycopg.Connection, role: str, table: str, privilege: str) -> list[str]:
    """The columns of a table on which a role has a privilege."""
    return column(
        superuser,
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
        " and has_column_privilege(%s, attrelid, attnum, %s) order by attnum",
        table,
        role,
        privilege,
    )


def test_every_table_with_a_user_is_tested_here(superuser: psycopg.Connection) -> None:
    found = column(
        superuser,
        "select relname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'user_id'"
        " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relispartition order by 1",
    )
    assert found == TABLES
    assert all(snapshot(superuser, table) for table in TABLES)


STRANGERS = pytest.mark.parametrize("stranger", ["bob", "", None], ids=["bob", "empty setting", "no setting"])


@STRANGERS
@pytest.mark.parametrize("table", TABLES)
def test_a_stranger_sees_nothing(superuser: psycopg.Connection, table: str, stranger: str | None) -> None:
    query = SQL("select count(*) from {}").format(Identifier(table))

    with acting(superuser, "crafely_app", stranger):
        assert superuser.execute(query).fetchone() == (0,)
    with acting(superuser, "crafely_app", "alice"):
        assert superuser.execute(query).fetchone() != (0,)


@STRANGERS
@pytest.mark.parametrize("table", TABLES)
def test_a_stranger_inserts_nothing_for_her(superuser: psycopg.Connection, table: str, stranger: str | None) -> None:
    before = snapshot(superuser, table)
    # Only what the role may write, so that it is row-level security that has to refuse.
    columns = SQL(", ").join(map(Identifier, may(superuser, "crafely_app", table, "insert") or ["user_id"]))
    insert = SQL("insert into {table} ({columns}) select {columns} from hers").format(
        table=Identifier(table), columns=columns
    )
    superuser.execute(SQL("create temp table hers as select * from {} limit 1").format(Identifier(table)))
    superuser.execute("grant select on hers to crafely_app")

    with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(superuser, "crafely_app", stranger):
        superuser.execute(insert)

    assert snapshot(superuser, table) == before


@STRANGERS
@pytest.mark.parametrize("table", TABLES)
def test_a_stranger_changes_nothing_of_hers(superuser: psycopg.Connection, table: str, stranger: str | None) -> None:
    before = snapshot(superuser, table)
    changeable = may(superuser, "crafely_app", table, "update")

    for name in changeable:
        update = SQL("update {} set {} = default").format(Identifier(table), Identifier(name))
        with acting(superuser, "crafely_app", stranger):
            assert superuser.execute(update).rowcount == 0
    for name in {"user_id", "id", "created_at"} & set(may(superuser, "crafely_app", table, "select")) - {*changeable}:
        take = SQL("update {0} set {1} = default").format(Identifier(table), Identifier(name))
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(superuser, "crafely_app", stranger):
            superuser.execute(take)

    assert snapshot(superuser, table) == before


@STRANGERS
@pytest.mark.parametrize("table", TABLES)
def test_a_stranger_deletes_nothing_of_hers(superuser: psycopg.Connection, table: str, stranger: str | None) -> None:
    before = snapshot(superuser, table)

    for action in ("delete from {}", "truncate {} cascade"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(superuser, "crafely_app", stranger):
            superuser.execute(SQL(action).format(Identifier(table)))

    assert snapshot(superuser, table) == before


def test_row_level_security_is_enabled_and_forced_wherever_there_is_a_user(superuser: psycopg.Connection) -> None:
    found = superuser.execute(
        "select relname, relrowsecurity, relforcerowsecurity from pg_class c"
        " join pg_attribute a on a.attrelid = c.oid and a.attname = 'user_id'"
        " where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
    ).fetchall()

    assert {name for name, _, _ in found} > {*TABLES, "usage_default", "audit_log_default"}
    assert [row for row in found if row[1:] != (True, True)] == []


def test_each_policy_for_users_is_about_their_own_rows(superuser: psycopg.Connection) -> None:
    own = "(user_id = ( SELECT current_user_id() AS current_user_id))"
    found = superuser.execute(
        "select tablename, cmd, qual, with_check from pg_policies"
        " where roles && array['crafely_app', 'public']::name[] order by 1"
    ).fetchall()

    assert found == [
        (table, "SELECT", own, None) if table == "audit_log" else (table, "ALL", own, own) for table in TABLES
    ]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_has_no_power_of_its_own(superuser: psycopg.Connection, role: str) -> None:
    found = superuser.execute(
        "select rolsuper, rolbypassrls, rolcanlogin, rolcreatedb, rolcreaterole, rolreplication"
        " from pg_roles where rolname = %s",
        [role],
    ).fetchone()

    assert found == (False,) * 6
    for other in set(ROLES) - {role}:
        assert superuser.execute("select pg_has_role(%s, %s, 'member')", [role, other]).fetchone() == (False,)
    assert superuser.execute("select has_schema_privilege(%s, 'public', 'create')", [role]).fetchone() == (False,)


@pytest.mark.parametrize("role", ROLES)
def test_a_partition_is_reached_through_its_table_only(superuser: psycopg.Connection, role: str) -> None:
    partitions = column(
        superuser,
        "select relname from pg_class where relispartition and relkind = 'r' and relnamespace = 'public'::regnamespace",
    )

    assert len(partitions) > 10
    for partition in partitions:
        for privilege in ("select", "insert", "update"):
            assert may(superuser, role, partition, privilege) == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(superuser, role, "alice"):
            superuser.execute(SQL("delete from {}").format(Identifier(partition)))


# The columns that a role may read, of the tables that are not wholly open or closed to it.
READABLE = {
    "crafely_app": {"api_keys": "all but hashed_key"},
    "crafely_auth": {
        "api_keys": "id key_id hashed_key permissions active last_used_at user_id expires_at rate_limit",
        "packages": "id rate_limit",
        "user_subscriptions": "status start_date end_date user_id package_id",
    },
    "crafely_meter": {
        "api_keys": "id user_id",
        "usage_daily": "all",
        "usage_events": "all",
    },
    "crafely_admin": {
        "audit_log": "all",
        "idempotency_keys": "created_at",
        "packages": "all",
        "usage_daily": "all",
        "usage_events": "created_at",
        "user_subscriptions": "all",
    },
    "crafely_monitor": {},
    "crafely_backup": dict.fromkeys([*TABLES, "packages"], "all"),
    "crafely_encryption": {
        "agents": "id instructions context",
        "idempotency_keys": "body",
        "threads": "id instructions",
    },
}


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"crafely_app"}))
def test_a_role_reads_what_its_work_needs_and_nothing_else(superuser: psycopg.Connection, role: str) -> None:
    readable = {}
    for table in [*TABLES, "packages"]:
        columns = may(superuser, role, table, "select")
        if columns:
            everything = superuser.execute(SQL("select * from {} limit 0").format(Identifier(table))).description or []
            readable[table] = "all" if len(columns) == len(everything) else " ".join(columns)

    assert readable == READABLE[role]


@pytest.mark.parametrize("role", sorted(set(ROLES) - {"crafely_auth", "crafely_backup"}))
def test_the_hash_of_a_secret_is_read_by_nobody_else(superuser: psycopg.Connection, role: str) -> None:
    for query in ("select hashed_key from api_keys", "select * from api_keys", "update api_keys set name = hashed_key"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(superuser, role, "alice"):
            superuser.execute(query)


@pytest.mark.parametrize("role", ROLES)
def test_the_audit_trail_is_written_by_nobody(superuser: psycopg.Connection, role: str) -> None:
    before = snapshot(superuser, "audit_log")

    for query in (
        "insert into audit_log (actor_role, table_name, row_id, action, user_id) values ('x', 'x', 'x', 'delete', '')",
        "update audit_log set action = 'delete'",
        "delete from audit_log",
        "truncate audit_log",
        "insert into audit_seals select * from audit_seals",
        "update audit_seals set row_count = 0",
        "delete from audit_seals",
        "truncate audit_seals",
        "select append_audit_seal(null, null)",
        "select seal_audit_batch(null, '9', 9)",
        "select restart_audit_seals(null)",
        "alter table audit_log disable row level security",
        "drop trigger agents_audit on agents",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege), acting(superuser, role, "alice"):
            superuser.execute(query)

    assert snapshot(superuser, "audit_log") == before


@pytest.mark.parametrize("role", ["crafely_monitor", "crafely_backup"])
def test_who_only_looks_writes_nothing(superuser: psycopg.Connection, role: str) -> None:
    for table in tables(superuser):
        assert may(superuser, role, table, "insert") == []
        assert may(superuser, role, table, "update") == []
        assert superuser.execute("select has_table_privilege(%s, %s, 'delete')", [role, table]).fetchone() == (False,)


# Rows of bob's that refer to rows of alice's, by himself and by the role that may write for any user.
FORGERIES = [
    ("crafely_app", "insert into threads (name, agent_id, user_id) values ('x', 'agnt_alice', 'bob')"),
    ("crafely_app", "update threads set agent_id = 'agnt_alice'"),
    ("crafely_app", "insert into usage (api_key_id, user_id) values ('key_alice', 'bob')"),
    (
        "crafely_app",
        "insert into api_keys (key_id, hashed_key, user_id, rotated_from) values ('n', 'h', 'bob', 'key_alice')",
    ),
    ("crafely_meter", "insert into usage (api_key_id, user_id) values ('key_alice', 'bob')"),
    ("crafely_meter", "insert into usage (api_key_id, user_id, created_at) values ('key_alice', 'bob', '1999-01-01')"),
]


@pytest.mark.parametrize(("role", "forgery"), FORGERIES)
def test_no_row_can_refer_to_somebody_elses(superuser: psycopg.Connection, role: str, forgery: str) -> None:
    superuser.execute("insert into threads (name, user_id) values ('his own', 'bob')")

    with pytest.raises(psycopg.errors.ForeignKeyViolation), acting(superuser, role, "bob"):
        superuser.execute(forgery.encode())


# What housekeeping has the owner do.
ADMINS = ["drop_audit_month", "drop_usage_month", "ensure_month_partitions", "seal_audit_log"]


def test_no_function_lends_users_the_rights_of_its_owner(superuser: psycopg.Connection) -> None:
    lending = "select proname from pg_proc where prosecdef and pronamespace = 'public'::regnamespace"

    assert column(superuser, lending + " order by 1") == ["audit_change", *ADMINS]
    for role in ROLES:
        allowed = column(superuser, lending + " and has_function_privilege(%s, oid, 'execute') order by 1", role)
        assert allowed == (ADMINS if role == "crafely_admin" else [])
