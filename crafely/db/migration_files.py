"""What a folder of migrations must look like. Everything is read and checked here, before a database is asked.

A migration is two files: ``0007.some-topic.sql`` and its way back ``0007.some-topic.rollback.sql``. The id is
``0007.some-topic``. migrations/README.md gives the rules to those who write one.
"""

import hashlib
import re
from pathlib import Path

import msgspec
from yoyo.migrations import parse_metadata_from_sql_comments

_SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_FILE = re.compile(rf"(?P<id>[0-9]{{4}}\.{_SLUG})(?P<twin>\.rollback)?\.sql")
_UNFILLED = "<"
_UP = f"-- {_UNFILLED}why: what changes for whom, and what would be wrong without it>\n\n"
_DOWN = f"-- {_UNFILLED}what is lost, or who must stop using it first>\n\n"

_DIRECTIVES = {"depends", "transactional"}
# A word in small letters and a colon. Prose begins with a capital letter or has more words.
_DIRECTIVE = re.compile(r"(?P<word>[\w-]+)\s*:(?![:/])")
_LATE_DIRECTIVE = re.compile(rf"^\s*--\s*({'|'.join(_DIRECTIVES)})\s*:", re.MULTILINE | re.IGNORECASE)

# Text in which a semicolon or a keyword means nothing: strings, quoted names, dollar quotes, comments (nested once).
OPAQUE = re.compile(
    r"""(?<!\w)[eE]'(?:\\.|''|[^'\\])*'
      | '(?:''|[^'])*'
      | "(?:""|[^"])*"
      | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$
      | (?P<comment>--[^\n]*|/\*(?:[^*/]|\*(?!/)|/(?!\*)|(?>/\*.*?\*/))*+\*/)""",
    re.VERBOSE | re.DOTALL,
)
_BODY = re.compile(r"\bbegin\s+atomic\b.*?;\s*end\b", re.DOTALL | re.IGNORECASE)
_TRANSACTION = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback|abort|savepoint|release|prepare\s+transaction)\b", re.IGNORECASE
)


class MigrationError(RuntimeError):
    """Something that stops a migration. The message is one line that names the file or the lock, and the rule."""


class Script(msgspec.Struct, frozen=True):
    """A migration as its two files say it. yoyo reads ``id`` and ``hash`` when it marks one."""

    id: str
    up: str
    down: str
    transactional: bool
    hash: str


def load(folder: Path) -> list[Script]:
    """Every migration of a folder, in order.

    Raises MigrationError for the first file that breaks a rule, and for a folder without any.
    """
    names = _ids(folder)
    if not names:
        raise MigrationError(f"{folder}: no migration here")
    return [_script(folder, name, set(names[:number])) for number, name in enumerate(names)]


def problems(folder: Path) -> list[MigrationError]:
    """What is wrong with a folder's files: one error a migration, or the one that says it is no such folder."""
    try:
        load(folder)
    except MigrationError as first:
        found = []
        try:
            names = _ids(folder)
        except MigrationError:
            return [first]
        for number, name in enumerate(names):
            try:
                _script(folder, name, set(names[:number]))
            except MigrationError as error:
                found.append(error)
        return found or [first]
    return []


def _script(folder: Path, name: str, earlier: set[str]) -> Script:
    up, directives = _read(folder / f"{name}.sql")
    down, twin_directives = _read(folder / f"{name}.rollback.sql")
    if twin_directives:
        raise MigrationError(f"{name}.rollback.sql: directives stand in {name}.sql and count for both")
    if unknown := set(directives.get("depends", "").split()) - earlier:
        raise MigrationError(f"{name}.sql: depends on {min(unknown)}, which is no earlier migration")
    transactional = directives.get("transactional", "true")
    if transactional not in {"true", "false"}:
        raise MigrationError(f"{name}.sql: transactional is true or false, not {transactional!r}")
    for path, text in (f"{name}.sql", up), (f"{name}.rollback.sql", down):
        _check_statements(path, text, transactional == "true")
    checksum = hashlib.sha256(f"{up}\0{down}".encode()).hexdigest()
    return Script(name, up, down, transactional == "true", checksum)


def _ids(folder: Path) -> list[str]:
    """The ids in a folder, in order: numbers without gaps, each with its twin, no stray file."""
    try:
        files = sorted(path.name for path in folder.iterdir() if path.name != "README.md" and path.name[0] != ".")
    except OSError as error:
        raise MigrationError(f"{folder}: {error.strerror}") from error
    ids, twins = [], set()
    for file in files:
        match = _FILE.fullmatch(file)
        if not match:
            raise MigrationError(
                f"{file}: a migration is NNNN.some-topic.sql, its way back NNNN.some-topic.rollback.sql"
            )
        if match["twin"]:
            twins.add(match["id"])
        else:
            ids.append(match["id"])
    for number, name in enumerate(ids, 1):
        if name not in twins:
            raise MigrationError(f"{name}.sql: {name}.rollback.sql is missing")
        if int(name[:4]) != number:
            raise MigrationError(f"{name}.sql: should be number {number:04}; numbers have no gaps and no doubles")
    if alone := twins.difference(ids):
        raise MigrationError(f"{min(alone)}.rollback.sql: {min(alone)}.sql is missing")
    return ids


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """A file's text (line ends as \\n, so that a checkout on another system has the same checksum) and directives."""
    try:
        text = path.read_bytes().decode().replace("\r\n", "\n")
    except OSError as error:
        raise MigrationError(f"{path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise MigrationError(f"{path.name}:{line}: not UTF-8") from error
    if text.startswith("\ufeff") or "\0" in text or "\r" in text:
        raise MigrationError(f"{path.name}: plain text has no byte order mark, no NUL and no lone carriage return")
    directives, comment, sql = parse_metadata_from_sql_comments(text)
    why = [line for line in comment.splitlines() if line.strip()]
    if not why:
        raise MigrationError(f"{path.name}: begins with `-- ` lines that say why")
    for line in why:
        if line.startswith(_UNFILLED):
            raise MigrationError(f"{path.name}: the header is not filled in")
        word = match["word"] if (match := _DIRECTIVE.match(line)) else ""
        if word.islower() or word.lower() in _DIRECTIVES:
            raise MigrationError(
                f"{path.name}: `-- {line}` is no directive; those are {', '.join(sorted(_DIRECTIVES))}"
            )
    if late := _LATE_DIRECTIVE.search(sql):
        raise MigrationError(f"{path.name}: `-- {late[1]}:` stands below the first statement, where it does nothing")
    return text, directives


def statements(text: str) -> list[tuple[int, str]]:
    """The statements of a file: the line on which each begins, and its text with strings and comments blotted out."""
    found = []
    plain = _blotted(text)
    begin = 0
    for end in [*(match.start() for match in re.finditer(";", plain)), len(plain)]:
        statement = plain[begin:end]
        if statement.strip():
            first = begin + len(statement) - len(statement.lstrip())
            found.append((plain.count("\n", 0, first) + 1, statement.strip()))
        begin = end + 1
    return found


def _blotted(text: str) -> str:
    """The text without what means nothing to us, each line where it was."""

    def blot(match: re.Match[str]) -> str:
        return (" " if match["comment"] else "''") + "\n" * match[0].count("\n")

    return _BODY.sub(lambda match: "\n" * match[0].count("\n"), OPAQUE.sub(blot, text))


def _check_statements(file: str, text: str, transactional: bool) -> None:
    found = statements(text)
    if not found:
        raise MigrationError(f"{file}: holds no statement")
    if not transactional and len(found) > 1:
        raise MigrationError(
            f"{file}:{found[1][0]}: {len(found)} statements; outside a transaction a file holds exactly one"
        )
    for line, statement in found:
        if "\\" in statement:
            line += statement.count("\n", 0, statement.index("\\"))  # noqa: PLW2901 - where in the statement it is
            raise MigrationError(
                f"{file}:{line}: has a backslash command; those are psql's, the server does not know them"
            )
        if match := _TRANSACTION.match(statement):
            raise MigrationError(f"{file}:{line}: `{match[1]}`: a migration opens and closes no transaction of its own")
        if re.match(r"\s*copy\b.*\bstdin\b", statement, re.DOTALL | re.IGNORECASE):
            raise MigrationError(f"{file}:{line}: `copy … from stdin`: there is no input here; use insert")


def create(folder: Path, name: str) -> tuple[Path, Path]:
    """Write the two files of the next migration, with headers to fill in; gives both paths.

    Raises MigrationError for a name of another shape, and when a file cannot be written.
    """
    if not re.fullmatch(_SLUG, name) or len(name) > 60:
        raise MigrationError(f"{name!r}: a name is small letters, digits and single hyphens, 60 characters at most")
    stem = f"{len(_ids(folder)) + 1:04}.{name}"
    up, down = folder / f"{stem}.sql", folder / f"{stem}.rollback.sql"
    for path, header in (up, _UP), (down, _DOWN):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(header)
        except OSError as error:
            raise MigrationError(f"{path}: {error.strerror}") from error
    return up, down
