"""Drift: each small wrong change to a live database is named, and nothing else is."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crafely.db import embedded, migrate
from crafely.db.drift import Drift, drift
from crafely.db.snapshot import Object, compare, for_months_of, look, same_months, take

# One statement, on one month of usage.
MONTH = """do $$ begin execute format('{}', (
    select min(inhrelid::regclass::text)
    from pg_inherits
    where inhparent = 'usage'::regclass and inhrelid::regclass::text like '%m%'
)); end $$"""
REFERENCE = """alter table threads drop constraint threads_user_id_agent_id_fkey;
    alter table threads add constraint threads_user_id_agent_id_fkey
    foreign key (user_id, agent_id) references agents (user_id, id) not valid"""
# A change that nobody reviewed, and what is said of it.
DRIFTED = {
    "a table": ("create table notes (id int)", r"^table notes: should not be there"),
    "a lost table": ("drop table usage_events", r"^table usage_events: is missing"),
    "storage": ("alter table usage_daily set (fillfactor = 100)", r"usage_daily: is .*=100.*should be .*=70"),
    "unlogged": ("alter table usage_events set unlogged", r"^table usage_events: is «unlogged»"),
    "a column": ("alter table agents add owner text", r"^column agents\.owner: should not be there"),
    "a lost column": ("alter table agents drop context", r"^column agents\.context: is missing"),
    "a type": ("alter table threads alter model type varchar(99)", r"threads\.model: is «character varying\(99\)»"),
    "a default": ("alter table packages alter active set default false", r"packages\.active: is .*default false"),
    "null": ("alter table packages alter price drop not null", r"packages\.price: is .*should be .*not null"),
    "not null": ("alter table agents alter tools set not null", r"agents\.tools: is «jsonb not null»"),
    "a check": ("alter table packages drop constraint packages_price_check", r"packages_price_check .*: is missing"),
    "a key": ("alter table threads drop constraint threads_storage_id_key", r"threads_storage_id_key .*: is missing"),
    "a foreign key": (
        REFERENCE,
        r"threads_user_id_agent_id_fkey .*is .*NOT VALID»",
    ),
    "an index": (
        "drop index threads_user_id_created_at_id_idx",
        r"^index threads_user_id_created_at_id_idx on .*missing",
    ),
    "another index": ("create index on agents (name)", r"^index agents_name_idx on agents: should not be there"),
    "other columns": (
        "drop index packages_created_at_id_idx; create index packages_created_at_id_idx on packages (created_at, id)",
        r"packages_created_at_id_idx .*is .*\(created_at, id\)",
    ),
    "an index of months": (
        "drop index usage_api_key_id_created_at_id_idx",
        r"usage_api_key_id_created_at_id_idx .*miss",
    ),
    "a function": (
        "create or replace function current_user_id() returns text language sql stable parallel safe return 'bob'",
        r"^function current_user_id\(\): is «RETURN 'bob'",
    ),
    "a function's path": (
        "alter function audit_change() reset all",
        r"^function audit_change\(\): is .*SET search_path",
    ),
    "a function's right": (
        "grant execute on function audit_change() to public",
        r"grant on function audit_change\(\) to",
    ),
    "a trigger": ("drop trigger agents_audit on agents", r"^trigger agents_audit on agents: is missing"),
    "a trigger at rest": (
        "alter table agents disable trigger agents_audit",
        r"agents_audit on agents: is .*\(disabled\)",
    ),
    "a policy": (
        "alter policy agents_own on agents using (true)",
        r"^policy agents_own on agents: is .*using \(true\)",
    ),
    "a policy for all": ("alter policy agents_own on agents to public", r"agents_own on agents: is «to public"),
    "another policy": ("create policy x on agents using (true)", r"^policy x on agents: should not be there"),
    "no security": ("alter table agents disable row level security", r"^row level security of agents: is missing"),
    "unforced": ("alter table agents no force row level security", r"row level security of agents: is «enabled»"),
    "a month's security": (
        MONTH.format("alter table %I disable row level security"),
        r"^row level security of usage_y\d{4}m\d\d: is missing",
    ),
    "a month's rows": (
        MONTH.format("grant select on %I to crafely_app"),
        r"^grant on usage_y\d{4}m\d\d to crafely_app: should not be there \(select\)",
    ),
    "a role": (
        "alter role crafely_app bypassrls; grant crafely_admin to crafely_app",
        "^role crafely_app: is «.* bypassrls in role crafely_admin»",
    ),
    "a grant": ("grant select on usage to crafely_meter", r"^grant on usage to crafely_meter: is .*select"),
    "a lost grant": ("revoke select on packages from crafely_app", r"^grant on packages to crafely_app: is missing"),
    "a column's grant": (
        "grant select (hashed_key) on api_keys to crafely_app",
        r"api_keys to crafely_app: .*hashed_key",
    ),
    "a schema's grant": (
        "grant create on schema public to crafely_app",
        r"schema public to crafely_app: is «create, us",
    ),
    "the tool's table": (
        "revoke select on _yoyo_migration from crafely_admin",
        r"_yoyo_migration to crafely_admin.*miss",
    ),
    "a view": ("create view v as select 1 as a", r"^view v: should not be there"),
    "a type of one's own": ("create type mood as enum ('good')", r"^type mood: should not be there"),
    "a sequence": ("create sequence s", r"^sequence s: should not be there"),
    "a comment": ("comment on table agents is 'changed'", r"^comment on table agents: is «'changed'»"),
    "an owner": ("alter table agents owner to pg_monitor", r"^table agents: is «owner pg_monitor»"),
}
# What is for housekeeping, the planner or another program to say.
NO_DRIFT = {
    "months to come": "select ensure_month_partitions('usage', 6)",
    "a month that is gone": MONTH.format("drop table %I"),
    "another schema": "create schema other; create table other.t (id int)",
    "an extension": "create extension if not exists pg_stat_statements schema public",
    "statistics": "analyze",
    "rows": "insert into packages (name, price) values ('p', 1)",
}


@pytest.fixture(scope="module")
def migrated(server: embedded.Server, template: str) -> Iterator[psycopg.Connection]:
    """A migrated database, in which each change is taken back at the end of its test."""
    name = f"{template}_drift"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name} template {template}".encode())
        with psycopg.connect(make_conninfo(server.url, dbname=name), autocommit=True) as migrated:
            yield migrated
        connection.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="module")
def wanted(migrated: psycopg.Connection) -> list[Object]:
    """What migrations make."""
    return take(migrated)


def said(wanted: list[Object], migrated: psycopg.Connection, change: str) -> list[str]:
    with migrated.transaction(force_rollback=True):
        migrated.execute(change.encode())
        found = [one for one in look(migrated) if one.schema == "public"]
    return [str(one) for one in compare(for_months_of(wanted, found), same_months(found))]


@pytest.mark.parametrize(("change", "names"), DRIFTED.values(), ids=DRIFTED)
def test_a_change_is_named(wanted: list[Object], migrated: psycopg.Connection, change: str, names: str) -> None:
    lines = said(wanted, migrated, change)
    assert [line for line in lines if re.search(names, line)], lines
    assert [line for line in lines if "\n" in line] == []


@pytest.mark.parametrize("change", NO_DRIFT.values(), ids=NO_DRIFT)
def test_what_is_no_drift_is_not_named(wanted: list[Object], migrated: psycopg.Connection, change: str) -> None:
    assert said(wanted, migrated, change) == []


def test_a_live_database_is_compared_with_one_made_for_it(database_url: str, server: embedded.Server) -> None:
    assert drift(database_url, server.url) == Drift()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("drop index agents_user_id_created_at_id_idx; grant delete on agents to crafely_app")
        before = take(connection)
        names = [one.object for one in drift(database_url, server.url).differences]
        assert names == ["grant on agents to crafely_app", "index agents_user_id_created_at_id_idx on agents"]
        # It was looked at, and nothing more.
        assert take(connection) == before
    with psycopg.connect(server.url) as connection:
        assert connection.execute(
            "select count(*) from pg_database where datname like 'crafely_scratch%'"
        ).fetchone() == (0,)


def test_a_database_is_compared_as_far_as_it_was_migrated(empty_database: str, server: embedded.Server) -> None:
    assert drift(empty_database, server.url).not_compared == "no migration is applied"
    migrate.up(empty_database, to="0004.agents")
    assert drift(empty_database, server.url) == Drift()


def test_a_migration_without_its_file_is_not_guessed_at(
    empty_database: str, server: embedded.Server, tmp_path: Path
) -> None:
    for name in "0001.a", "0002.b":
        (tmp_path / f"{name}.sql").write_text(f"-- Why.\ncreate table {name[5:]} (id int);\n")
        (tmp_path / f"{name}.rollback.sql").write_text(f"-- Back.\ndrop table {name[5:]};\n")
    migrate.up(empty_database, tmp_path)
    for path in tmp_path.glob("0002*"):
        path.unlink()
    assert drift(empty_database, server.url, tmp_path).not_compared == (
        "0002.b is applied and has no file here, so what it made is not known"
    )
