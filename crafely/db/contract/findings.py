"""What a check has to say, and where."""

import re
from pathlib import Path

import msgspec

from crafely.db import query
from crafely.db.query import Statement


class Finding(msgspec.Struct, frozen=True):
    """Something that does not hold: where, which rule, and how to mend it."""

    path: str
    line: int
    rule: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.problem}"


def shown(path: Path) -> str:
    """A SQL file's path as people know it: sql/…"""
    return f"sql/{path.relative_to(query.folder())}"


def at_word(statement: Statement, word: str, rule: str, problem: str) -> Finding:
    """A finding on the line of a word of the header; where it has no such line, on that of «returns»."""
    lines = statement.header.lines
    return Finding(shown(statement.path), lines.get(word, lines["returns"]), rule, problem)


def at_text(statement: Statement, text: str, rule: str, problem: str) -> Finding:
    """A finding on the line where a text first stands below the header, else on the statement's first line."""
    return _at_pattern(statement, re.escape(text), rule, problem)


def at_table(statement: Statement, table: str, rule: str, problem: str) -> Finding:
    """A finding on the line where a table is first read or changed, else on the statement's first line."""
    return _at_pattern(statement, rf"\b(?:from|join|update)\s+{re.escape(table)}\b", rule, problem)


def _at_pattern(statement: Statement, pattern: str, rule: str, problem: str) -> Finding:
    source = statement.path.read_text(encoding="utf-8")
    first = len(source) - len(_body(source))
    found = re.compile(pattern).search(source, first)
    line = source.count("\n", 0, found.start() if found else first) + 1
    return Finding(shown(statement.path), line, rule, problem)


def at_offset(statement: Statement, offset: int, rule: str, problem: str) -> Finding:
    """A finding at an offset (in characters) of the text that the server got."""
    # The text sent has the name in a comment and $n for :name, which changes no line; the header is left out.
    text = statement.text.decode()
    source = statement.path.read_text(encoding="utf-8").rstrip()
    line = source.count("\n") - text.rstrip().count("\n") + text.count("\n", 0, offset) + 1
    return Finding(shown(statement.path), max(line, 1), rule, problem)


def _body(source: str) -> str:
    lines = source.splitlines(keepends=True)
    while lines and lines[0].startswith("--"):
        lines.pop(0)
    return "".join(lines)
