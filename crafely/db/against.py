"""``crafely check --against REV``: can two releases serve side by side while one takes the other's place?

The schema changes first (crafely refuses to serve without its migrations), so for a while the older release's
statements run on the new schema, and must go on as they did: the same parameters, the same columns, the same indexes,
no new column that they would have to fill. That the new statements do not run on the older schema is no fault; it says
what must come first. Both are asked of two databases, made from nothing by the migrations of either release.
"""

import io
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from crafely.db import migrate, plans, query, schema_file, scratch
from crafely.db.contract import Finding
from crafely.db.header import Header, SqlFileError, read_header
from crafely.db.lexer import parameters
from crafely.db.migration_files import load
from crafely.db.migration_lint import Use, lost_indexes, uses

# For git, on a slow disk.
SECONDS = 60

_REQUIRED = """
    select c.relname, a.attname
    from pg_attribute as a
    inner join pg_class as c on c.oid = a.attrelid
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and a.attnum > 0 and not a.attisdropped
        and a.attnotnull and not a.atthasdef and a.attidentity = ''
"""
_NULLABLE = "select not attnotnull from pg_attribute where attrelid = %s and attnum = %s"


class RevisionError(RuntimeError):
    """A revision that git does not know, or that is no release of this. The message is one line."""


class Against(msgspec.Struct, frozen=True):
    """The answer: what would break, what must come first, and how many statements of the older release were held."""

    findings: list[Finding]
    notices: list[Finding]
    statements: int


class _File(msgspec.Struct, frozen=True):
    """A statement of either release, as the server gets it."""

    path: str
    header: Header
    text: bytes
    # The line on which the text begins.
    line: int


class _Described(msgspec.Struct, frozen=True):
    """What a server says of a statement: types by name, which columns may be null, what it inserts into."""

    parameters: list[str]
    columns: list[tuple[str, str]]
    nullable: list[bool]
    inserts: set[str]


def against(server: str, revision: str, *, root: Path | None = None) -> Against:
    """Holds the statements of a revision against this tree's schema, and this tree's against the revision's.

    ``server`` is the URL of a server that nobody's data is on; ``root`` the checkout (None: the one that this runs
    from). Raises RevisionError, MigrationError and psycopg.Error.
    """
    place = root or query.folder().parent
    names = query.folder().name, migrate.folder().name
    now = place / names[0], place / names[1]
    with _release(place, revision, names) as then:
        if edited := list(_history(then[1], now[1], revision)):
            # On a schema that nobody can get to there is nothing to be asked.
            return Against(edited, [], 0)
        older, newer = _files(then[0], f"{revision}:"), _files(now[0], "")
        with _made(server, then[1]) as before, _made(server, now[1]) as after:
            required = _required(after) - _required(before)
            findings = [one for file in older for one in _compare(file, before, after, required)]
            findings += _indexes(before, after, now[1], uses(then[0]), revision)
            notices = [
                Finding(file.path, line, "order", f"{problem} of {revision}: migrate before this is served")
                for file in newer
                for line, problem in _refusals(file, before)
            ]
    return Against(sorted(findings, key=lambda one: (one.path, one.line)), notices, len(older))


@contextmanager
def _made(server: str, folder: Path) -> Iterator[psycopg.Connection[Any]]:
    """A database made for this, as a folder of migrations makes it."""
    with scratch.database(server) as url:
        migrate.up(url, folder)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection


@contextmanager
def _release(root: Path, revision: str, names: tuple[str, str]) -> Iterator[tuple[Path, Path]]:
    """The folders of statements and of migrations, as a revision has them."""
    if revision.startswith("-"):
        raise RevisionError(f"{revision}: git knows no such revision")
    command = ["git", "-C", str(root), "archive", "--format=tar", revision, "--", *(f"./{name}" for name in names)]
    # Whoever runs us, a hook of git's for one, may have named another repository.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, check=False, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RevisionError(f"git cannot be asked: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["git archive failed"]
        # Advice may stand behind the error.
        why = next((line for line in said if line.startswith("fatal: ")), said[-1])
        raise RevisionError(f"{revision}: {why}")
    with tempfile.TemporaryDirectory(prefix="crafely-against-") as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            for member in archive.getmembers():
                # Plain files at the places that were asked for, and nothing else that an archive may hold.
                path = Path(folder) / member.name
                if member.isfile() and path.resolve().is_relative_to(Path(folder).resolve()):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]  # it is a file
        yield Path(folder) / names[0], Path(folder) / names[1]


def _history(then: Path, now: Path, revision: str) -> Iterator[Finding]:
    """Migrations of the older release that are not here as they were: where they are applied, nothing goes on."""
    here = migrate.expected(now)
    for name, checksum in migrate.expected(then).items():
        if here.get(name) == checksum:
            continue
        if name not in here:
            problem = f"{revision} has it, and this tree does not: put it back"
            yield Finding(f"{now.name}/{name}.sql", 1, "history", problem)
            continue
        for file in (f"{name}.sql", f"{name}.rollback.sql"):
            if line := schema_file.difference((then / file).read_text(), (now / file).read_text()):
                problem = f"was changed since {revision}, where it may be applied: put it back, write the next one"
                yield Finding(f"{now.name}/{file}", line, "history", problem)


def _files(folder: Path, prefix: str) -> list[_File]:
    """Every statement with a proper header; the others are for `crafely check` to name."""
    found = []
    for path in sorted(folder.glob("*/*.sql")):
        name = f"{path.parent.name}/{path.stem}"
        source = path.read_text(encoding="utf-8")
        try:
            header, start = read_header(path, name, source)
        except SqlFileError:
            continue
        body = _numbered(source, start)
        blank = len(body) - len(body.lstrip())
        line = source.count("\n", 0, start) + body.count("\n", 0, blank) + 1
        found.append(_File(f"{prefix}{folder.name}/{name}.sql", header, body.strip().encode(), line))
    return found


def _numbered(source: str, start: int) -> str:
    names: list[str] = []
    parts: list[str] = []
    end = start
    for begin, stop, name in parameters(source):
        if begin >= start:
            if name not in names:
                names.append(name)
            parts += [source[end:begin], f"${names.index(name) + 1}"]
            end = stop
    return "".join([*parts, source[end:]])


def _compare(
    file: _File,
    before: psycopg.Connection[Any],
    after: psycopg.Connection[Any],
    required: set[tuple[str, str]],
) -> Iterator[Finding]:
    """What becomes of a statement of the older release."""
    for role in file.header.roles:
        try:
            was = _describe(before, file, role)
        except psycopg.Error:
            # It did not run before either.
            continue
        try:
            now = _describe(after, file, role)
        except psycopg.Error as error:
            problem = f"ran as {role} and is refused on this schema: {_message(error)}; what still serves would fail"
            yield Finding(file.path, _line(file, error), "rolling", problem)
            continue
        returns = file.header.lines["returns"]
        if (was.parameters, was.columns) != (now.parameters, now.columns):
            changed = [f"{a} becomes {b}" for a, b in zip(_told(was), _told(now), strict=False) if a != b]
            problem = (
                f"{', '.join(changed) or 'its columns change'} on this schema: what still serves reads the old type"
            )
            yield Finding(file.path, returns, "rolling", problem)
        for (name, _), could, can in zip(was.columns, was.nullable, now.nullable, strict=False):
            if can and not could:
                yield Finding(
                    file.path, returns, "rolling", f"column {name} may be null now, and what serves counts on it"
                )
        for table, column in sorted(required):
            if table in now.inserts and not re.search(rf"\b{re.escape(column)}\b", file.text.decode()):
                problem = f"inserts into {table} without {column}, which must have a value now: give it a default first"
                yield Finding(file.path, file.line, "rolling", problem)


def _told(one: _Described) -> list[str]:
    return [*(f"${n} {kind}" for n, kind in enumerate(one.parameters, 1)), *(f"{n} {kind}" for n, kind in one.columns)]


def _refusals(file: _File, connection: psycopg.Connection[Any]) -> Iterator[tuple[int, str]]:
    for role in file.header.roles:
        try:
            _describe(connection, file, role)
        except psycopg.Error as error:
            yield _line(file, error), f"is refused as {role} ({_message(error)}) on the schema"


def _describe(connection: psycopg.Connection[Any], file: _File, role: str) -> _Described:
    """Raises psycopg.Error when the server refuses the statement to the role."""
    with plans.as_role(connection, role):
        described = plans.prepare(connection, file.text)
        plan = plans.explain_prepared(connection, described)
    kinds = [described.param_type(n) for n in range(described.nparams)]
    fields = [((described.fname(n) or b"").decode(), described.ftype(n)) for n in range(described.nfields)]
    nullable = []
    for n in range(described.nfields):
        row = connection.execute(_NULLABLE, [described.ftable(n), described.ftablecol(n)]).fetchone()
        nullable.append(bool(row and row[0]))
    names = dict(
        connection.execute(
            "select oid, format_type(oid, null) from pg_type where oid = any(%s)", [[*kinds, *(k for _, k in fields)]]
        ).fetchall()
    )
    return _Described(
        parameters=[names[kind] for kind in kinds],
        columns=[(name, names[kind]) for name, kind in fields],
        nullable=nullable,
        inserts=set(_inserted(plan.json)),
    )


def _inserted(node: Any) -> Iterator[str]:
    """The tables that a plan inserts into."""
    if isinstance(node, list):
        for one in node:
            yield from _inserted(one)
    elif isinstance(node, dict):
        if node.get("Node Type") == "ModifyTable" and node.get("Operation") == "Insert":
            yield node["Relation Name"]
        for value in node.values():
            yield from _inserted(value)


def _required(connection: psycopg.Connection[Any]) -> set[tuple[str, str]]:
    """The columns that every insert has to name: table and column."""
    return set(connection.execute(_REQUIRED).fetchall())


def _indexes(
    before: psycopg.Connection[Any], after: psycopg.Connection[Any], folder: Path, used: list[Use], revision: str
) -> Iterator[Finding]:
    """Indexes that the older release's statements count on and that are gone: where they were dropped, else who."""
    there = [use for use in used if before.execute("select to_regclass(%s)", [use.index]).fetchone() != (None,)]
    told = [msgspec.structs.replace(use, path=f"{revision}:{use.path}") for use in there]
    dropped = lost_indexes(after, folder, load(folder), told)
    yield from dropped
    for use in told:
        gone = after.execute("select to_regclass(%s)", [use.index]).fetchone() == (None,)
        if gone and not any(use.index in one.problem for one in dropped):
            problem = f"counts on {use.index}, which this schema does not have: first a release that does not"
            yield Finding(use.path, use.line, "index-in-use", problem)


def _message(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())


def _line(file: _File, error: psycopg.Error) -> int:
    """The line of the file at which the server stopped."""
    position = int(error.diag.statement_position or 1)
    return file.line + file.text.decode()[: position - 1].count("\n")
