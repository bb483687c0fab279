"""What each role may do: the database against the reviewed file ``sql/grants.txt``, and against what statements need.

A line of the file is one grant, one policy or one table's row-level security. A grant that no statement needs has its
reason behind it: ``crafely_backup: select on agents  -- because it reads everything``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from crafely.db import query
from crafely.db.contract.facts import Facts
from crafely.db.contract.findings import Finding
from crafely.db.contract.nodes import Node, walk
from crafely.db.header import ROLES

_HEAD = """\
-- What each role may do in a database that is migrated, and whose rows it sees. Written by «crafely check
-- --write-grants»; a change of it is reviewed as the migration that made it. A grant that no statement needs says why,
-- behind two dashes, and is let through for it.
"""
_BECAUSE = "  -- because "
_LINE = re.compile(r"(?P<role>\w+): (?P<privilege>\w+)(?: \((?P<columns>[^)]*)\))? (?:on )?(?P<object>.+)")
# Bits of requiredPerms (src/include/nodes/parsenodes.h), and the field with the columns.
_PRIVILEGES = {
    1: ("insert", "insertedCols"),
    2: ("select", "selectedCols"),
    4: ("update", "updatedCols"),
    8: ("delete", ""),
}
# The number that stands for the column 0, which is the whole row: system columns come before it.
_WHOLE_ROW = 7
_ALL = "*"

# What is not the extension's of somebody else, nor a month that housekeeping has made: those have the parent's rights.
_SNAPSHOT = """
with roles (role, oid) as (
    select rolname::text, oid
    from pg_roles
    where rolname = any(%(roles)s)
    union all
    select 'public', 0
),
members as (
    select objid
    from pg_depend
    where deptype = 'e'
),
relations as (
    select c.oid, c.relname, c.relacl, c.relispartition, c.relrowsecurity, c.relforcerowsecurity, c.relkind,
        pg_partition_root(c.oid) as root
    from pg_class c
    where c.relnamespace = 'public'::regnamespace
        and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
        and c.oid not in (select objid from members)
),
lines as (
    select format('%%s: %%s on %%s', r.role, lower(a.privilege_type), c.relname) as line
    from relations c
    cross join lateral aclexplode(c.relacl) a
    join roles r on r.oid = a.grantee
    union all
    select format('%%s: %%s (%%s) on %%s', r.role, lower(a.privilege_type),
        string_agg(t.attname, ', ' order by t.attname), c.relname)
    from relations c
    join pg_attribute t on t.attrelid = c.oid and not t.attisdropped
    cross join lateral aclexplode(t.attacl) a
    join roles r on r.oid = a.grantee
    group by r.role, a.privilege_type, c.relname
    union all
    select format('%%s: %%s %%s', r.role, lower(a.privilege_type), p.oid::regprocedure)
    from pg_proc p
    cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    join roles r on r.oid = a.grantee
    where p.pronamespace = 'public'::regnamespace
        and p.oid not in (select objid from members)
    union all
    select format('%%s: %%s on schema public', r.role, lower(a.privilege_type))
    from pg_namespace n
    cross join lateral aclexplode(n.nspacl) a
    join roles r on r.oid = a.grantee
    where n.nspname = 'public'
    union all
    -- Before PostgreSQL 16 it is the role that inherits, or not; since then each membership.
    select format('%%s: member of %%s%%s', r.role, m.roleid::regrole,
        case when pg_has_role(r.oid, m.roleid, 'usage') then ' with its rights' end)
    from pg_auth_members m
    join roles r on r.oid = m.member
    union all
    select format('%%s: attribute %%s', r.role, a.name)
    from roles r
    join pg_roles p on p.oid = r.oid
    cross join lateral (values
        ('superuser', p.rolsuper), ('createrole', p.rolcreaterole),
        ('createdb', p.rolcreatedb), ('login', p.rolcanlogin), ('replication', p.rolreplication),
        ('bypassrls', p.rolbypassrls)
    ) as a (name, has)
    where a.has
    union all
    select format('%%s: %%s by default on every new %%s', r.role, lower(a.privilege_type), d.defaclobjtype)
    from pg_default_acl d
    cross join lateral aclexplode(d.defaclacl) a
    join roles r on r.oid = a.grantee
    union all
    select format('row security of %%s: %%s', c.relname, case
        when c.relforcerowsecurity and c.relrowsecurity then 'forced'
        when c.relrowsecurity then 'not for the owner'
        else 'off'
    end)
    from relations c
    left join relations parent on parent.oid = c.root
    where c.relkind in ('r', 'p')
        -- A partition is as its parent.
        and (not c.relispartition or (c.relrowsecurity, c.relforcerowsecurity)
            is distinct from (parent.relrowsecurity, parent.relforcerowsecurity))
    union all
    select format('policy %%s on %%s: %%s%%s to %%s%%s%%s', p.polname, c.relname,
        case when p.polpermissive then '' else 'restrictive ' end,
        case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete'
            else 'all' end,
        (
            select string_agg(
                case
                    when o.oid = 0 then 'public'
                    when o.oid = (select relowner from pg_class where oid = p.polrelid) then 'owner'
                    else o.oid::regrole::text
                end, ', ' order by o.oid::regrole::text)
            from unnest(p.polroles) as o (oid)
        ),
        ' using (' || pg_get_expr(p.polqual, p.polrelid) || ')',
        ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
    from pg_policy p
    join relations c on c.oid = p.polrelid
)
select line
from lines
order by line collate "C"
"""


class Needs:
    """What statements need of the tables and functions, role by role."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        # Role, privilege and object; the columns, or "*" for what has none.
        self._found: dict[tuple[str, str, str], set[str]] = {}
        self._roles: set[str] = set()

    def add(self, role: str, tree: Node) -> None:
        """Adds what a statement needs that runs as this role."""
        self._roles.add(role)
        for node in walk(tree):
            # Before PostgreSQL 16 the permissions stand in the entry of the range table itself.
            if "requiredPerms" in node and int(node.get("relid", 0)):
                self._add_table(role, node)
            for name in ("funcid", "opfuncid", "aggfnoid"):
                function = self._facts.functions.get(int(node[name])) if name in node else None
                if function and function.schema == "public":
                    self._found.setdefault((role, "execute", function.name), set()).add(_ALL)

    def _add_table(self, role: str, node: Node) -> None:
        table = self._facts.tables.get(int(node["relid"]))
        if table is None or table.schema != "public":
            return
        for bit, (privilege, field) in _PRIVILEGES.items():
            if not int(node["requiredPerms"]) & bit:
                continue
            numbers = {int(number) - _WHOLE_ROW for number in (node[field] if field else None) or ()}
            found = self._found.setdefault((role, privilege, table.name), set())
            found |= {name for number, (name, _) in table.columns.items() if number in numbers or 0 in numbers}
            if not field:
                found.add(_ALL)

    def lacking(self, line: str) -> str | None:
        """What of a line nobody needs, in words; None when all of it is needed, or is no grant."""
        found = _LINE.fullmatch(line)
        if found is None or found["privilege"] == "attribute":
            return None
        role, privilege, thing = found["role"], found["privilege"], found["object"]
        if thing == "schema public":
            return None if role in self._roles else f"{privilege} on it"
        if privilege == "execute":
            return None if (role, privilege, thing.partition("(")[0]) in self._found else "it"
        needed = self._found.get((role, privilege, thing))
        if needed is None:
            return "it"
        if found["columns"] is None and _ALL in needed:
            return None
        columns = set(found["columns"].split(", ")) if found["columns"] else self._columns(thing)
        unneeded = sorted(columns - needed)
        return f"{privilege} of ({', '.join(unneeded)})" if unneeded else None

    def _columns(self, table: str) -> set[str]:
        return {
            name
            for t in self._facts.tables.values()
            if (t.schema, t.name) == ("public", table)
            for name, _ in t.columns.values()
        }


def snapshot(connection: psycopg.Connection[Any]) -> list[str]:
    """What every role may do, a line each, in order."""
    return [line for (line,) in connection.execute(_SNAPSHOT.encode(), {"roles": list(ROLES)}).fetchall()]


def place() -> Path:
    """Where the reviewed file is."""
    return query.folder() / "grants.txt"


def grants(lines: Iterable[str], needs: Needs) -> Iterator[Finding]:
    """Where the reviewed file is not what the database says, and grants that nothing needs."""
    lines = list(lines)
    path = f"sql/{place().name}"
    reviewed = _read()
    after = 1
    for line in lines:
        if line in reviewed:
            after = reviewed[line].number
            continue
        problem = (
            f"the database has «{line}», and this file has not: drop it in a migration, or let it be reviewed here"
        )
        yield Finding(path, after, "grants", f"{problem} (crafely check --write-grants)")
    for line, entry in reviewed.items():
        if line not in lines:
            problem = f"the database is without «{line}»: put it back in a migration, or take it out here"
            yield Finding(path, entry.number, "grants", problem)
            continue
        lacking = needs.lacking(line)
        if lacking and not entry.reason:
            problem = f"no statement needs {lacking}: revoke it in a migration, or say why it is there, behind «{line}»"
            yield Finding(path, entry.number, "grants", f"{problem} as «{_BECAUSE.strip()} …»")
        elif entry.reason and not lacking:
            yield Finding(path, entry.number, "grants", f"«{line}» is needed as it is; take the reason out")


def write(lines: Iterable[str]) -> None:
    """Writes the reviewed file anew; reasons stay with their lines."""
    reviewed = _read()
    kept: Mapping[str, str] = {line: entry.reason for line, entry in reviewed.items()}
    told = [f"{line}{_BECAUSE}{kept[line]}" if kept.get(line) else line for line in lines]
    place().write_text("\n".join([_HEAD, *told]) + "\n", encoding="utf-8")


class _Entry(msgspec.Struct, frozen=True):
    number: int
    reason: str


def _read() -> dict[str, _Entry]:
    if not place().is_file():
        return {}
    entries = {}
    for number, line in enumerate(place().read_text(encoding="utf-8").splitlines(), 1):
        grant, _, reason = line.partition(_BECAUSE)
        if line.strip() and not line.startswith("--"):
            entries[grant] = _Entry(number, reason)
    return entries
