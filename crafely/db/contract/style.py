"""How a SQL file is written: what a reviewer should not have to look for.

The header itself is read, and refused, when a statement is loaded (header.py).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from crafely.db import query
from crafely.db.contract.findings import Finding, shown
from crafely.db.lexer import words
from crafely.db.query import Statement

WIDTH = 120
# What stands in the folder and is no statement.
_OTHERS = {"README.md", "schema.sql", "grants.txt"}
_STAR = re.compile(r"(?:\bselect(?:\s+(?:all|distinct))?|\breturning|,|\.)\s*$")
# What begins a clause, and parentheses; but «delete from», «is distinct from» and «rows from» are no clauses.
_CLAUSE = re.compile(
    r"(?<!delete )(?<!distinct )(?<!rows )\b(?:from|where|group by|having|order by|limit|offset|returning|set|values)\b"
    r"|[()]"
)


def style(statement: Statement) -> Iterator[Finding]:
    """Capital letters, stars, long lines, tabs, blanks at the end, and anything but one statement with a semicolon."""
    source = statement.path.read_text(encoding="utf-8")
    for offset, problem in sorted([*_layout(source), *_words(words(source)), *_clauses(words(source))]):
        yield Finding(shown(statement.path), source.count("\n", 0, offset) + 1, "style", problem)


def _layout(source: str) -> Iterator[tuple[int, str]]:
    offset = 0
    for line in source.split("\n"):
        if len(line) > WIDTH:
            yield offset, f"{len(line)} characters; break the line before the {WIDTH + 1}st"
        if line != line.rstrip():
            yield offset, "blanks at the end of the line; take them away"
        if "\t" in line:
            yield offset, "a tab; indent with four spaces"
        offset += len(line) + 1
    if not source.endswith(";\n"):
        yield len(source.rstrip()), "the file must end with its statement's semicolon, and one end of line"


def _words(plain: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"\b\w*[A-Z]\w*", plain):
        yield found.start(), f"{found[0]} in capital letters; write {found[0].lower()}"
    for found in re.finditer(r"\*", plain):
        if _STAR.search(plain[: found.start()]):
            yield found.start(), "a star for columns; name them, so that a new one changes nothing"
    semicolons = [found.start() for found in re.finditer(";", plain)]
    if len(semicolons) > 1:
        yield semicolons[0], "more than one statement; a file holds one"


def _clauses(plain: str) -> Iterator[tuple[int, str]]:
    for line in re.finditer(r"\S.*", plain):
        depth = 0
        for found in _CLAUSE.finditer(line[0]):
            depth += {"(": 1, ")": -1}.get(found[0], 0)
            if found[0] not in "()" and found.start() and depth == 0:
                yield line.start() + found.start(), f"«{found[0]}» begins a clause; begin a line with it"


def orphans() -> Iterator[Finding]:
    """SQL files that no function claims, and what is no SQL file at all."""
    claimed = {statement.path for statement in query.statements.values()}
    for path in sorted(query.folder().rglob("*")):
        if path.is_file() and path not in claimed and not _is_other(path):
            problem = "no function of the store claims this file; delete it, or give it a signature"
            yield Finding(shown(path), 1, "signature", problem)
    for statement in query.statements.values():
        if not statement.path.is_file():
            problem = "the signature has no file; write it, or delete the signature"
            yield Finding(shown(statement.path), 1, "signature", problem)


def _is_other(path: Path) -> bool:
    # What a DBA runs by hand stands in a folder that is no table.
    return (path.parent == query.folder() and path.name in _OTHERS) or path.parent == query.folder() / "scale"
