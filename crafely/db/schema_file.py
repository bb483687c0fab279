"""``sql/schema.sql``: the whole schema as one file, for a reader and for a review of what a migration changed.

It is written from the catalogue (snapshot.py) of a database that the migrations made, table by table, and psql can make
the same schema of it. The months of partitioned tables are left out: housekeeping makes them.
"""

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from crafely.db import query, snapshot
from crafely.db.header import ROLES
from crafely.db.migration_files import OPAQUE
from crafely.db.snapshot import Object

WIDTH = 120
HEADER = f"""\
-- The schema as the migrations make it. Written by `make schema`, compared in every run of the tests: change it by a
-- migration. To read, and to see in a review what a migration changes; migrations/ says why things are as they are.
--
-- Not in here: the roles ({", ".join(ROLES[:3])},
-- {", ".join(ROLES[3:])}; none can log in), months of partitioned tables
-- (ensure_month_partitions makes them) and the tables of the migration tool.
"""
# Where a definition goes on in the next line.
_TRIGGER = re.compile(r" (?=(?:before|after|instead of|for each|when|execute) )")
_POLICY = re.compile(r" (?=(?:for|to|using|with check) )")
_INDEX = re.compile(r" (?=(?:on|where) )")


def path() -> Path:
    """Where the file is."""
    return query.folder() / "schema.sql"


def render(objects: Iterable[Object]) -> str:
    """The text of the file."""
    kept = [one for one in objects if not snapshot.is_month(one) and one.kind != "role" and not _is_tools(one)]
    schema = _Schema(kept)
    parts = [HEADER, *schema.functions(), *(schema.table(name) for name in schema.tables()), *schema.rest()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def difference(wanted: str, found: str) -> int | None:
    """The first line in which two texts differ; None where they are the same."""
    if wanted == found:
        return None
    pairs = zip(wanted.splitlines(), found.splitlines(), strict=False)
    same = next((number for number, (a, b) in enumerate(pairs, 1) if a != b), None)
    return same or min(wanted.count("\n"), found.count("\n")) + 1


def _is_tools(one: Object) -> bool:
    return one.parent == "_yoyo_migration"


class _Schema:
    def __init__(self, objects: list[Object]) -> None:
        self._of: dict[tuple[str, str], list[Object]] = defaultdict(list)
        self._kinds: dict[str, list[Object]] = defaultdict(list)
        for one in objects:
            self._of[one.kind, one.parent].append(one)
            self._kinds[one.kind].append(one)

    def tables(self) -> list[str]:
        """Tables, each after those that it refers to and after the one that it is a partition of."""
        wanted = {one.name: {one.parent} - {""} for one in self._kinds["table"]}
        for one in self._kinds["constraint"]:
            if target := re.match(r"FOREIGN KEY \(.*?\) REFERENCES ([^(]+)\(", one.definition):
                wanted[one.parent].add(target[1])
        ordered: list[str] = []
        while waiting := [name for name in sorted(wanted) if name not in ordered]:
            free = [name for name in waiting if wanted[name] - {name} <= set(ordered)]
            ordered += free[:1] or waiting[:1]
        return ordered

    def functions(self) -> Iterator[str]:
        """Schemas, types and sequences, and the functions that tables may lean on."""
        for one in self._kinds["schema"]:
            if one.name != "public":
                yield f"create schema {one.name};"
        for one in self._kinds["type"]:
            yield _fold(f"create type {one.name} as {one.definition};")
        for one in self._kinds["sequence"]:
            yield _fold(f"create sequence {one.name} {one.definition};")
        for one in self._kinds["function"]:
            if not self._knows_rows(one):
                yield self._function(one)

    def _knows_rows(self, function: Object) -> bool:
        """Whether it takes, gives or declares rows of a table, which must then be there first."""
        head, body, _ = _split_body(function.definition)
        types = re.findall(r"\w+", head + body.partition("begin")[0] if "declare" in body else head)
        return any(one.name in types for one in self._kinds["table"])

    def _function(self, one: Object) -> str:
        text = _lower(one.definition).replace("create or replace function public.", "create function ", 1)
        head, body, rest = _split_body(text)
        clauses = [line.strip() for line in head.splitlines()]
        lines = ["\n".join(_fold(line, "    ") for line in _indented(clauses)) + body + rest.strip() + ";"]
        if one.name not in {granted.parent.removeprefix("function ") for granted in self._public()}:
            lines.append(f"revoke all on function {one.name} from public;")
        return "\n\n".join([*lines, *self._grants(f"function {one.name}"), *self._comments(one)])

    def _public(self) -> list[Object]:
        return [one for one in self._kinds["grant"] if one.name == "public"]

    def table(self, name: str) -> str:
        """A table with whatever belongs to it."""
        (table,) = [one for one in self._kinds["table"] if one.name == name]
        options = re.sub(r" (?=with \(|owner )", "\n", _lower(table.definition))
        if table.parent:
            parts = [f"create table {name} {options};"]
        else:
            columns = sorted(self._own("column", name), key=lambda one: one.place)
            lines = [f"{one.name} {_lower(one.definition)}" for one in columns]
            lines += [
                f"constraint {one.name} {_lower(one.definition)}"
                for one in sorted(self._own("constraint", name), key=lambda one: (one.place, one.name))
            ]
            body = ",\n".join(_fold(f"    {line}", "        ") for line in lines)
            parts = [f"create table {name} (\n{body}\n)" + (f"\n{options}" if options else "") + ";"]
        parts += self._comments(table)
        parts += [_clauses(one, _INDEX) for one in self._own("index", name)]
        parts += [_clauses(one, _TRIGGER) for one in self._own("trigger", name)]
        for one in self._of["row level security", name]:
            alter = f"alter table {name}"
            forced = f"\n{alter} force row level security;" if "forced" in one.definition else ""
            parts.append(f"{alter} enable row level security;{forced}")
        for one in self._of["policy", name]:
            clauses = _POLICY.sub("\n    ", f" {_lower(one.definition)}")
            parts.append(f"create policy {one.name} on {name}{clauses};")
        return "\n\n".join([*parts, *self._grants(name)])

    def rest(self) -> Iterator[str]:
        """Functions of rows, views and their like, and what may be done in the schema itself."""
        for one in self._kinds["function"]:
            if self._knows_rows(one):
                yield self._function(one)
        for kind in ("view", "materialized view"):
            for one in self._kinds[kind]:
                yield f"create {kind} {one.name} as\n{_lower(one.definition).rstrip(';')};"
                yield from self._grants(one.name)
        for kind in ("rule", "statistics"):
            for one in self._kinds[kind]:
                yield f"{_lower(one.definition).rstrip(';')};"
        for parent in sorted({one.parent for one in self._kinds["grant"]}):
            if parent.startswith(("schema ", "sequence ")):
                yield from self._grants(parent)

    def _own(self, kind: str, table: str) -> list[Object]:
        return [one for one in self._of[kind, table] if not one.inherited]

    def _grants(self, parent: str) -> list[str]:
        held: dict[str, list[str]] = defaultdict(list)
        for one in self._of["grant", parent]:
            # PostgreSQL's own, which nobody has to grant.
            if one.name != "public":
                held[one.definition].append(one.name)
        lines = [_fold(f"grant {rights} on {parent} to {', '.join(names)};") for rights, names in sorted(held.items())]
        return ["\n".join(lines)] if lines else []

    def _comments(self, about: Object) -> list[str]:
        found = [
            one
            for one in self._kinds["comment"]
            if one.name.split(".")[0].split("(")[0] == about.name.split("(")[0]
            and (one.parent == about.kind or (one.parent == "column" and about.kind == "table"))
        ]
        found.sort(key=lambda one: one.place)
        return ["\n".join(_comment(one) for one in found)] if found else []


def _indented(lines: list[str]) -> list[str]:
    """The first line as it is, the others further in; what comes before a quoted body keeps a space from it."""
    return [lines[0], *(f"    {line}" if line not in {"as", "as "} else "as " for line in lines[1:])]


def _clauses(one: Object, clause: re.Pattern[str]) -> str:
    """An object's own statement; each clause in a line of its own where one line would be too long."""
    text = f"{_lower(one.definition)};"
    if len(text) <= WIDTH and one.kind == "index":
        return text
    return "\n".join(_fold(line, "        ") for line in clause.sub("\n    ", text).splitlines())


def _comment(one: Object) -> str:
    line = f"comment on {one.parent} {one.name} is {one.definition};"
    return line if len(line) <= WIDTH else f"comment on {one.parent} {one.name} is\n    {one.definition};"


def _split_body(text: str) -> tuple[str, str, str]:
    """A function before its quoted body, the body, and what follows; the body of SQL is not quoted."""
    for match in OPAQUE.finditer(text):
        if match["tag"] is not None:
            return text[: match.start()], match[0].replace("$function$", "$$"), text[match.end() :]
    return text, "", ""


def _lower(text: str) -> str:
    """Names and words in small letters, which is what the server reads them as; texts and quoted names as they are."""
    parts, end = [], 0
    for match in OPAQUE.finditer(text):
        parts += [text[end : match.start()].lower(), match[0]]
        end = match.end()
    return "".join([*parts, text[end:].lower()])


def _fold(line: str, indent: str = "    ") -> str:
    """A statement in lines that are short enough, broken where no text is."""
    if len(line) <= WIDTH:
        return line
    blank = "\x00"
    held = OPAQUE.sub(lambda match: match[0].replace(" ", blank), line)
    return textwrap.fill(
        held, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    ).replace(blank, " ")
