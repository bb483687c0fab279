"""``crafely migrate lint``: what may not be said of a migration's files, of what they make, and of what they take away.

Three looks: at the files (migration_files.py, and squawk.py where it is installed), at the statements (what only the
server knows, such as which function is volatile, is asked of it), and at the database that they make of an empty one.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from crafely.db import migrate, query, schema_file, scratch, snapshot, squawk
from crafely.db.contract import Finding
from crafely.db.header import SqlFileError, read_header
from crafely.db.migrate import MigrationError
from crafely.db.migration_files import Script, load, problems, statements

_IGNORE = re.compile(r"\s*-- lint-ignore (?P<rule>[\w-]+): \S+")
# Not that of a function, which is its own.
_SETS_TIMEOUT = re.compile(
    r"(?:set|alter\s+(?:role|user|database)\s[^;]*\bset)\s+(?:local\s+|session\s+)?lock_timeout\b", re.IGNORECASE
)
_CREATES = re.compile(
    r"\s*create\s+(?:unlogged\s+)?table\s+(?:if\s+not\s+exists\s+)?(?P<table>[\w.\"]+)", re.IGNORECASE
)
_ALTERS = re.compile(r"\s*alter\s+table\s+(?:if\s+exists\s+)?(?:only\s+)?(?P<table>[\w.\"]+)", re.IGNORECASE)
# What makes PostgreSQL write each row anew: https://www.postgresql.org/docs/current/sql-altertable.html#SQL-ALTERTABLE-NOTES
_ADDS = re.compile(
    r"\badd\s+(?:column\s+)?(?!constraint|primary|unique|foreign|check|exclude)(?P<rest>(?:(?!,\s*add\b)[^;])*)",
    re.IGNORECASE,
)
_DEFAULT = re.compile(r"\bdefault\s+(?P<expression>(?:[^,()]|\((?:[^()]|\([^()]*\))*\))*)", re.IGNORECASE)
_COMPUTED = re.compile(r"\bgenerated\s+always\s+as\s*\(|\bas\s+identity\b|\b(?:small|big)?serial\b", re.IGNORECASE)
_CALLS = re.compile(r"([a-z_]\w*)\s*\(", re.IGNORECASE)
_DROPS_INDEX = r"drop\s+index\s+(?:concurrently\s+)?(?:if\s+exists\s+)?(?:[\w.\"]+\s*,\s*)*{name}\b"

_VOLATILE = "select proname from pg_proc where proname = any(%s) and provolatile = 'v'"
_BARE_KEYS = """
    select k.conrelid::regclass::text, k.conname, (
        select string_agg(a.attname, ', ' order by array_position(k.conkey, a.attnum))
        from pg_attribute as a
        where a.attrelid = k.conrelid and a.attnum = any(k.conkey)
    )
    from pg_constraint as k
    where k.contype = 'f' and k.conparentid = 0 and k.connamespace = 'public'::regnamespace
        -- An index helps that begins with columns of the key; the tenant's column alone finds all of a tenant's rows.
        and not exists (
            select
            from pg_index as i
            cross join unnest(i.indkey::int2[]) with ordinality as c (attnum, place)
            inner join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = c.attnum
            where i.indrelid = k.conrelid and i.indisvalid
                and c.attnum = any(k.conkey)
                and (i.indkey::int2[])[0:c.place - 1] <@ k.conkey
                and (a.attname <> 'user_id' or cardinality(k.conkey) = 1)
                and (
                    i.indpred is null
                    or pg_get_expr(i.indpred, i.indrelid) = format('(%%I IS NOT NULL)', a.attname)
                )
        )
    order by 1, 2
"""


class Use(msgspec.Struct, frozen=True):
    """A statement that counts on an index: the index, the file that says so, and the line."""

    index: str
    path: str
    line: int


def lint(server: str, folder: Path | None = None) -> list[Finding]:
    """Every finding in a folder of migrations, in the order of files and lines; none means that all is well.

    Of our own folder (None) ``sql/schema.sql`` is looked at too.

    ``server`` is the URL of a server that nobody's data is on: a database is made there, and dropped. Raises
    MigrationError when squawk does not answer, and psycopg.Error.
    """
    place = folder or migrate.folder()
    broken = [of_error(place, error) for error in problems(place)]
    if broken:
        # What is no migration cannot be run either.
        return broken
    scripts = load(place)
    findings = squawk.run(program, place, scripts) if (program := squawk.find()) else []
    with scratch.database(server) as url:
        try:
            migrate.up(url, place)
        except MigrationError as error:
            return [*findings, of_error(place, error)]
        with psycopg.connect(url, autocommit=True) as connection:
            for script in scripts:
                findings += _statements(connection, place, script)
            findings += _bare_keys(connection, place, scripts)
            findings += lost_indexes(connection, place, scripts, uses(query.folder()))
            if folder is None:
                findings += _schema(connection)
    return sorted(findings, key=lambda one: (one.path, one.line, one.rule))


def _schema(connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    path = schema_file.path()
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    if line := schema_file.difference(schema_file.render(snapshot.take(connection)), found):
        shown = f"{path.parent.name}/{path.name}"
        yield Finding(shown, line, "schema", "is not what the migrations make: run `make schema` and look at the diff")


def of_error(folder: Path, error: MigrationError) -> Finding:
    """What stopped a migration, as a finding in its file."""
    path, line, problem = migrate.split(str(error), "README.md")
    return Finding(f"{folder.name}/{path}", line, "file", problem)


def uses(folder: Path) -> list[Use]:
    """What the headers of a folder of statements name as ``-- uses:``. Files without a proper header say nothing."""
    found = []
    for path in sorted(folder.glob("*/*.sql")):
        name = f"{path.parent.name}/{path.stem}"
        try:
            header, _ = read_header(path, name, path.read_text(encoding="utf-8"))
        except SqlFileError:
            continue
        found += [Use(index, f"{folder.name}/{name}.sql", header.lines["uses"]) for index in header.uses]
    return found


def lost_indexes(
    connection: psycopg.Connection[Any], folder: Path, scripts: list[Script], used: Iterable[Use]
) -> list[Finding]:
    """Indexes that statements count on and the migrations have dropped: where, and who counts on them."""
    users: dict[str, list[Use]] = {}
    for use in used:
        users.setdefault(use.index, []).append(use)
    findings = []
    for index, named in sorted(users.items()):
        if connection.execute("select to_regclass(%s) is null", [index]).fetchone() != (True,):
            continue
        for script in reversed(scripts):
            drop = re.compile(_DROPS_INDEX.format(name=re.escape(index)), re.IGNORECASE)
            lines = [line for line, text in statements(script.up) if drop.match(text)]
            if lines:
                who = ", ".join(f"{use.path}:{use.line}" for use in named)
                problem = f"drops {index}, which `-- uses:` of {who} counts on: first a release that does not"
                findings.append(Finding(f"{folder.name}/{script.id}.sql", lines[0], "index-in-use", problem))
                break
    return findings


def _statements(connection: psycopg.Connection[Any], folder: Path, script: Script) -> Iterator[Finding]:
    """Our own rules for statements. What a rollback does to rows is its header's to say."""
    for file, text in (f"{script.id}.sql", script.up), (f"{script.id}.rollback.sql", script.down):
        lines = text.splitlines()
        created: set[str] = set()
        for begin, statement in statements(text):
            if match := _CREATES.match(statement):
                created.add(match["table"])
            for rule, position, problem in _judge(connection, script, statement, created):
                line = begin + statement.count("\n", 0, position)
                if not (rule == "rewrite" and file.endswith(".rollback.sql")) and not _ignored(lines, begin, rule):
                    yield Finding(f"{folder.name}/{file}", line, rule, problem)


def _judge(
    connection: psycopg.Connection[Any], script: Script, statement: str, created: set[str]
) -> Iterator[tuple[str, int, str]]:
    """Rule, place in the statement and problem."""
    if match := _SETS_TIMEOUT.match(statement):
        problem = "the runner sets lock_timeout, and who runs it may set another in the URL: leave it out"
        yield "lock-timeout", match.start(), problem
    if not script.transactional and (match := re.search(r"\bif\s+not\s+exists\b", statement, re.IGNORECASE)):
        problem = "takes an invalid index that an earlier run left for a good one: leave «if not exists» out"
        yield "if-not-exists", match.start(), problem
    altered = _ALTERS.match(statement)
    if altered and altered["table"] not in created:
        for added in _ADDS.finditer(statement):
            if why := _rewrites(connection, added["rest"]):
                problem = f"{why} writes every row of {altered['table']} anew while nobody can read it: add the column"
                yield "rewrite", added.start(), f"{problem} without it, set the default, and fill it in portions"


def _rewrites(connection: psycopg.Connection[Any], column: str) -> str | None:
    """What of a new column makes every row be written anew."""
    if match := _COMPUTED.search(column):
        return f"`{' '.join(match[0].split())}`".replace("(`", "(…)`")
    for default in _DEFAULT.finditer(column):
        calls = [name.lower() for name in _CALLS.findall(default["expression"])]
        if found := connection.execute(_VOLATILE, [calls]).fetchone():
            return f"the volatile default {found[0]}()"
    return None


def _ignored(lines: list[str], begin: int, rule: str) -> bool:
    """Whether the comments right above a statement let this rule pass, with a reason."""
    for line in reversed(lines[: begin - 1]):
        if not line.lstrip().startswith("--"):
            return False
        if (match := _IGNORE.match(line)) and match["rule"] == rule:
            return True
    return False


def _bare_keys(connection: psycopg.Connection[Any], folder: Path, scripts: list[Script]) -> Iterator[Finding]:
    for table, name, columns in connection.execute(_BARE_KEYS, []).fetchall():
        file, line = _origin(scripts, name, table)
        problem = (
            f"no index of {table} begins with ({columns}): deleting what they refer to reads all of it; create one"
        )
        yield Finding(f"{folder.name}/{file}", line, "foreign-key-index", f"{name}: {problem}")


def _origin(scripts: list[Script], name: str, table: str) -> tuple[str, int]:
    """Where a constraint was made: by its name, else by the reference in a statement on its table."""
    for script in scripts:
        for line, text in statements(script.up):
            if match := re.search(rf"\b{re.escape(name)}\b", text):
                return f"{script.id}.sql", line + text.count("\n", 0, match.start())
    column = name.removeprefix(f"{table}_").removesuffix("_fkey")
    for script in scripts:
        for line, text in statements(script.up):
            of_table = _CREATES.match(text) or _ALTERS.match(text)
            match = re.search(rf"\b{re.escape(column)}\b[^,;]*\breferences\b|\breferences\b", text, re.IGNORECASE)
            if match and of_table and of_table["table"] == table:
                return f"{script.id}.sql", line + text.count("\n", 0, match.start())
    return f"{scripts[0].id}.sql", 1
