"""No role can do more than sql/grants.txt says: asked of the server for everything there is, and tried.

That file in turn is held against what statements need by `crafely check`: a grant that none needs has its reason there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from crafely.db import embedded, migrate
from crafely.db.contract import grants
from crafely.db.header import ROLES

# Those of the login that README has a DBA make, in the database's own words.
SERVER = """
    create role {login} login noinherit;
    grant crafely_app, crafely_auth, crafely_meter, crafely_admin, crafely_monitor to {login};
"""
LOGIN = "crafely_server_of_a_test"

# One line for each thing that a role could do to anything that is not PostgreSQL's own: table, column, sequence,
# function, schema, database, tablespace, foreign server.
EFFECTIVE = """
with ours as (
    select oid from pg_namespace where nspname not like 'pg\\_%%' and nspname <> 'information_schema'
),
members as (
    select classid, objid from pg_depend where deptype = 'e'
),
relations as (
    select oid, oid::regclass::text as name, relkind from pg_class
    where relnamespace in (table ours) and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
        and ('pg_class'::regclass, oid) not in (table members)
)
select p.privilege || ' of ' || a.attname || ' on ' || r.name
from relations r
join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
cross join unnest(array['select', 'insert', 'update', 'references']) p (privilege)
where r.relkind <> 'S' and has_column_privilege(%(role)s, r.oid, a.attnum, p.privilege)
union all
select p.privilege || ' on ' || r.name
from relations r
cross join unnest(%(whole)s::text[]) p (privilege)
where r.relkind <> 'S' and has_table_privilege(%(role)s, r.oid, p.privilege)
union all
select p.privilege || ' on sequence ' || r.name
from relations r
cross join unnest(array['usage', 'select', 'update']) p (privilege)
where r.relkind = 'S' and has_sequence_privilege(%(role)s, r.oid, p.privilege)
union all
select 'execute ' || f.oid::regprocedure
from pg_proc f
where f.pronamespace in (table ours) and ('pg_proc'::regclass, f.oid) not in (table members)
    and has_function_privilege(%(role)s, f.oid, 'execute')
union all
select p.privilege || ' on schema ' || n.nspname
from pg_namespace n
cross join unnest(array['usage', 'create']) p (privilege)
where n.oid in (table ours) and has_schema_privilege(%(role)s, n.oid, p.privilege)
union all
select p.privilege || ' on the database'
from unnest(array['create', 'temporary']) p (privilege)
where has_database_privilege(%(role)s, current_database(), p.privilege)
union all
select 'create on tablespace ' || t.spcname
from pg_tablespace t
-- Of the database's own, which its tables are in anyway, the schema decides.
where t.oid <> (select dattablespace from pg_database where datname = current_database())
    and has_tablespace_privilege(%(role)s, t.oid, 'create')
union all
select 'usage on ' || w.fdwname from pg_foreign_data_wrapper w
where has_foreign_data_wrapper_privilege(%(role)s, w.oid, 'usage')
union all
select 'usage on ' || s.srvname from pg_foreign_server s where has_server_privilege(%(role)s, s.oid, 'usage')
"""
# What is said of everybody, or of the whole server: none of it may be there.
STRAY = """
select format('setting %%s: %%s', parname, paracl) from pg_parameter_acl
union all
select format('large object %%s', oid) from pg_largeobject_metadata
union all
select format('%%s has other rights than initdb gave: %%s', p.oid::regprocedure, p.proacl)
from pg_proc p
left join pg_init_privs i on (i.classoid, i.objoid, i.objsubid) = ('pg_proc'::regclass, p.oid, 0)
where p.pronamespace = 'pg_catalog'::regnamespace and p.proacl is distinct from i.initprivs
union all
select format('%%s has other rights than initdb gave: %%s', c.oid::regclass, c.relacl)
from pg_class c
left join pg_init_privs i on (i.classoid, i.objoid, i.objsubid) = ('pg_class'::regclass, c.oid, 0)
where c.relnamespace = 'pg_catalog'::regnamespace and c.relacl is distinct from i.initprivs
union all
select format('%%s of %%s may be handed on', a.privilege_type, c.oid::regclass)
from pg_class c
left join pg_attribute t on t.attrelid = c.oid and t.attacl is not null
cross join lateral (select * from aclexplode(c.relacl) union all select * from aclexplode(t.attacl)) a
where c.relnamespace = 'public'::regnamespace and a.is_grantable and a.grantee <> c.relowner
union all
select format('%%s may be handed on', p.oid::regprocedure)
from pg_proc p
cross join lateral aclexplode(p.proacl) a
where p.pronamespace = 'public'::regnamespace and a.is_grantable and a.grantee <> p.proowner
union all
select format('by default on every new %%s: %%s', defaclobjtype, defaclacl) from pg_default_acl
union all
select format('%%s owns something', r.rolname)
from pg_shdepend d
join pg_roles r on r.oid = d.refobjid
where d.deptype = 'o' and r.rolname = any(%(roles)s)
union all
select format('%%s belongs to %%s%%s', m.member::regrole, m.roleid::regrole,
    case when m.admin_option then ', and may say who else does' end)
from pg_auth_members m
where m.member::regrole::text = any(%(roles)s)
    and (m.member::regrole::text, m.roleid::regrole::text, m.admin_option)
        is distinct from ('crafely_monitor', 'pg_monitor', false)
union all
select format('%%s: %%s', f.oid::regprocedure, case
        when has_function_privilege('public', f.oid, 'execute') then 'everybody may run it as its owner'
        else 'it looks for names where its caller says, or in his temporary tables first'
    end)
from pg_proc f
where f.prosecdef and f.pronamespace = 'public'::regnamespace
    and (has_function_privilege('public', f.oid, 'execute')
        or not coalesce(array_to_string(f.proconfig, ';'), '') ~ 'search_path=[^;]*pg_temp$')
"""
_GRANT = re.compile(r"(?P<role>\w+): (?P<what>\w+)(?: \((?P<columns>[^)]*)\))? (?P<on>on )?(?P<thing>.+)")


def rows(connection: psycopg.Connection, query: str, **values: Any) -> list[str]:
    return [row[0] for row in connection.execute(query.encode(), values or None).fetchall()]


def columns(connection: psycopg.Connection, table: str) -> list[str]:
    query = "select attname from pg_attribute where attrelid = %(t)s::regclass and attnum > 0 and not attisdropped"
    return rows(connection, query, t=table)


def whole(connection: psycopg.Connection) -> list[str]:
    """What one may be granted on a table, and not on its columns."""
    return ["delete", "truncate", "trigger", *(["maintain"] if connection.info.server_version >= 170000 else [])]


def effective(connection: psycopg.Connection, role: str) -> set[str]:
    """All that a role may do, whoever has granted it, and to whom."""
    return set(rows(connection, EFFECTIVE, role=role, whole=whole(connection)))


def reviewed(connection: psycopg.Connection, *roles: str) -> set[str]:
    """What the file grants to these roles, one line for each column."""
    found = set()
    for line in grants.place().read_text().splitlines():
        entry = _GRANT.fullmatch(line.partition("  -- because ")[0])
        if (
            line.startswith("--")
            or entry is None
            or entry["role"] not in roles
            or entry["what"] in {"member", "attribute"}
        ):
            continue
        what, thing = entry["what"], entry["thing"]
        if entry["on"] is None or thing.startswith("schema "):
            found.add(f"{what} {entry['on'] or ''}{thing}")
        elif what in whole(connection):
            found.add(f"{what} on {thing}")
        else:
            named = entry["columns"].split(", ") if entry["columns"] else columns(connection, thing)
            found |= {f"{what} of {column} on {thing}" for column in named}
    return found


def stray(connection: psycopg.Connection) -> list[str]:
    return rows(connection, STRAY, roles=list(ROLES))


def excess(connection: psycopg.Connection) -> dict[str, set[str]]:
    """By role, what is granted and not reviewed; and what the file says and the server has not."""
    found = {role: effective(connection, role) ^ reviewed(connection, role, "public") for role in ROLES}
    found["anybody"] = set(stray(connection)) | (set(grants.snapshot(connection)) ^ _lines())
    return {role: lines for role, lines in found.items() if lines}


def _lines() -> set[str]:
    lines = grants.place().read_text().splitlines()
    return {line.partition("  -- because ")[0] for line in lines if line.strip() and not line.startswith("--")}


@pytest.fixture(scope="module")
def migrated(server: embedded.Server) -> Iterator[str]:
    """A database that was migrated itself: a copy of one has not the rights on it."""
    name = "crafely_privileges"
    url = make_conninfo(**{**conninfo_to_dict(server.url), "dbname": name})  # type: ignore[arg-type]  # all are texts
    with psycopg.connect(server.url, autocommit=True) as administrator:
        administrator.execute(f"drop database if exists {name} with (force)".encode())
        administrator.execute(f"create database {name}".encode())
        administrator.execute(f"drop role if exists {LOGIN}".encode())
        migrate.up(url)
        administrator.execute(SQL(SERVER).format(login=Identifier(LOGIN)))
        yield url
        administrator.execute(f"drop database {name} with (force)".encode())
        administrator.execute(f"drop role {LOGIN}".encode())


@pytest.fixture
def superuser(migrated: str) -> Iterator[psycopg.Connection]:
    """Everything that it does is rolled back."""
    with psycopg.connect(migrated) as connection, connection.transaction(force_rollback=True):
        yield connection


def test_there_is_something_to_look_at(superuser: psycopg.Connection) -> None:
    assert "select of hashed_key on api_keys" in effective(superuser, "crafely_auth")
    assert "update of last_used_at on api_keys" in reviewed(superuser, "crafely_auth")
    assert len(reviewed(superuser, "crafely_app")) > 100
    assert len(effective(superuser, "postgres")) > 500


def test_nobody_may_do_more_or_less_than_was_reviewed(superuser: psycopg.Connection) -> None:
    assert excess(superuser) == {}


def test_nobody_reaches_a_partition_the_migrations_or_a_sequence_directly(superuser: psycopg.Connection) -> None:
    direct = {line.partition(" on ")[2] for role in ROLES for line in effective(superuser, role) if " on " in line}
    parents = rows(
        superuser, "select oid::regclass::text from pg_class where not relispartition and relkind in ('r', 'p')"
    )
    assert direct - set(parents) == {"schema public"}
    assert {name for name in direct if "yoyo" in name} <= {"_yoyo_migration"}


# A right too many, each in another way; by any of them a role could do something that no statement needs.
WIDENED = [
    "grant select on usage_default to crafely_app",
    "grant select on agents to crafely_auth",
    "grant select on agents to crafely_app with grant option",
    "grant select (user_id) on api_keys to crafely_app with grant option",
    "grant execute on function statement_statistics() to crafely_monitor with grant option",
    "grant select (hashed_key) on api_keys to crafely_app",
    "grant update (permissions) on api_keys to crafely_auth",
    "grant update (user_id) on agents to crafely_app",
    "grant insert on packages to crafely_app",
    "grant delete on agents to crafely_app",
    "grant truncate on usage to crafely_meter",
    "grant trigger on threads to crafely_app",
    "grant references on packages to crafely_app",
    "grant insert on audit_log to crafely_app",
    "grant delete on audit_log to crafely_admin",
    "grant select on usage to crafely_meter",
    "grant select on agents to crafely_monitor",
    "grant update on agents to crafely_backup",
    "grant select on packages to public",
    "grant select on _yoyo_log to crafely_app",
    "grant usage on sequence audit_log_id_seq to crafely_app",
    "grant execute on function audit_change() to crafely_app",
    "grant execute on function ensure_month_partitions(regclass, integer) to public",
    "grant execute on function statement_statistics() to crafely_app",
    "grant create on schema public to crafely_app",
    "grant create on schema public to public",
    "create schema further; grant usage on schema further to crafely_app",
    "create view seen as select * from api_keys; grant select on seen to crafely_app",
    "create function harm() returns void language sql security definer set search_path = public, pg_temp as ''",
    "alter function audit_change() set search_path = public",
    "alter function audit_change() set search_path = pg_temp, public",
    "alter function audit_change() reset search_path",
    "grant temporary on database crafely_privileges to public",
    "grant create on database crafely_privileges to crafely_admin",
    "grant set on parameter session_replication_role to crafely_app",
    "grant alter system on parameter log_statement to crafely_admin",
    "grant execute on function pg_read_file(text) to crafely_app",
    "grant execute on function pg_terminate_backend(integer, bigint) to crafely_app with grant option",
    "grant select on pg_authid to crafely_monitor",
    "select lo_create(7); grant select on large object 7 to crafely_app",
    "grant pg_read_all_data to crafely_app",
    "grant pg_read_server_files to crafely_monitor",
    "grant crafely_auth to crafely_app",
    "grant pg_monitor to crafely_monitor with admin option",
    "alter role crafely_app bypassrls",
    "alter role crafely_admin createrole",
    "alter role crafely_backup login",
    "alter role crafely_backup replication",
    "alter table packages owner to crafely_admin",
    "alter default privileges grant select on tables to crafely_monitor",
    "alter default privileges in schema public grant execute on functions to public",
    "alter table agents no force row level security",
    "alter table threads disable row level security",
    "alter table usage_default disable row level security",
    "alter policy agents_own on agents to public",
    "alter policy threads_own on threads using (true)",
    "create policy more on api_keys for select to crafely_app using (true)",
    "create foreign data wrapper far; grant usage on foreign data wrapper far to crafely_app",
    "create function fine() returns void language sql as ''",
    # And one too few.
    "revoke select on agents from crafely_app",
    "revoke usage on schema public from crafely_meter",
]


@pytest.mark.parametrize("statement", WIDENED)
def test_any_right_too_many_is_found(superuser: psycopg.Connection, statement: str) -> None:
    superuser.execute(statement.encode())
    assert excess(superuser) != {}


# What a role has no business to do, whatever its rights on tables are; «victim» is the process of somebody else.
ATTEMPTS = [
    "create table mine (n int)",
    "create temporary table mine (n int)",
    "create table pg_temp.mine as select 1",
    "select 1 into temporary mine",
    "create view mine as select 1",
    "create function mine() returns int language sql as 'select 1'",
    "create function pg_temp.mine() returns int language sql as 'select 1'",
    "create schema mine",
    "create sequence mine",
    "create type mine as enum ('a')",
    "create extension dblink",
    "create extension file_fdw",
    "create role mine",
    "create publication mine",
    "create event trigger mine on ddl_command_start execute function set_updated_at()",
    "alter role {role} superuser",
    "alter role {role} bypassrls",
    "alter database crafely_privileges set log_statement = 'all'",
    "set session_replication_role = replica",
    "set log_statement = 'all'",
    "set session authorization postgres",
    "alter table agents disable row level security",
    "alter table agents disable trigger all",
    "alter table audit_log owner to {role}",
    "alter function current_user_id() owner to {role}",
    "create or replace function current_user_id() returns text language sql as 'select null::text'",
    "create policy mine on agents using (true)",
    "create trigger mine after insert on agents for each row execute function set_updated_at()",
    "create index mine on agents (name)",
    "drop table agents",
    "drop index agents_user_id_created_at_id_idx",
    "truncate agents",
    "truncate audit_log",
    "delete from audit_log",
    "update audit_log set actor_user_id = 'somebody'",
    "insert into audit_log (actor_role, table_name, row_id, action) values ('x', 'x', 'x', 'insert')",
    "delete from api_keys",
    "delete from usage",
    "update usage set cost = 0",
    "update api_keys set user_id = 'me'",
    "select * from usage_default",
    "select * from audit_log_default",
    "select * from _yoyo_log",
    "update _yoyo_migration set migration_hash = ''",
    "copy (select 1) to program 'true'",
    "copy (select 1) to '/tmp/never-written'",
    "select pg_read_file('PG_VERSION')",
    "select pg_ls_dir('.')",
    "select lo_import('/etc/passwd')",
    "select lo_export(1, '/tmp/never-written')",
    "select rolpassword from pg_authid",
    "select * from pg_statistic",
    "select * from pg_user_mapping",
    "select pg_terminate_backend({victim})",
    "select pg_cancel_backend({victim})",
    "select pg_reload_conf()",
    "select pg_rotate_logfile()",
    "select pg_switch_wal()",
    "select pg_stat_reset()",
    "select pg_create_physical_replication_slot('mine')",
    "select pg_backup_start('mine')",
    "select audit_change()",
    "reset session authorization; set role postgres",
    "select set_config('role', 'postgres', false)",
]


@contextmanager
def signed_in(migrated: str, role: str) -> Iterator[psycopg.Connection]:
    """A session of a login that may take on this role and no other, and has."""
    name = f"login_of_{role}"
    with psycopg.connect(migrated, autocommit=True) as administrator:
        administrator.execute(
            f"drop role if exists {name}; create role {name} login noinherit; grant {role} to {name}".encode()
        )
        url = make_conninfo(migrated, user=name, options=f"-c role={role}")
        try:
            with psycopg.connect(url) as connection:
                yield connection
        finally:
            administrator.execute(f"drop role {name}".encode())


def allowed(connection: psycopg.Connection, *statements: str) -> list[tuple[str, str | None]]:
    """Those of the statements that are not refused for want of a right, and what else the server has against them."""
    found = []
    for statement in statements:
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
        except psycopg.Error as error:
            found.append((statement, error.sqlstate))
        else:
            found.append((statement, None))
    return found


def attempts(role: str, victim: psycopg.Connection) -> list[str]:
    return [attempt.format(role=role, victim=victim.info.backend_pid) for attempt in ATTEMPTS]


@pytest.mark.parametrize("role", ROLES)
def test_what_is_tried_is_refused(migrated: str, superuser: psycopg.Connection, role: str) -> None:
    others = [other for other in (*ROLES, "postgres", "pg_read_all_data", "pg_write_server_files") if other != role]
    with signed_in(migrated, role) as connection:
        assert allowed(connection, *attempts(role, superuser)) == []
        assert allowed(connection, *[f"set role {other}" for other in others]) == []
        # A login that takes on no role has none of its rights.
        assert allowed(connection, "set role none; select 1 from packages") == []


def test_the_login_that_serves_can_do_nothing_but_take_on_a_role(migrated: str, superuser: psycopg.Connection) -> None:
    assert effective(superuser, LOGIN) == reviewed(superuser, "public")
    roles = [f"set role {role}" for role in ROLES if role not in {"crafely_backup", "crafely_encryption"}]
    with psycopg.connect(make_conninfo(migrated, user=LOGIN)) as connection:
        assert allowed(connection, *attempts(LOGIN, superuser)) == []
        assert allowed(connection, *roles) == [(statement, None) for statement in roles]
        others = ("crafely_backup", "crafely_encryption", "postgres", "pg_read_all_data")
        assert allowed(connection, *[f"set role {other}" for other in others]) == []
