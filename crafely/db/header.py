"""The header of a SQL file: its comment lines before the statement. ``sql/README.md`` gives the grammar."""

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

# The roles that a statement may run as; the first is what a header that names none means.
ROLES = (
    "crafely_app",
    "crafely_auth",
    "crafely_meter",
    "crafely_admin",
    "crafely_monitor",
    "crafely_backup",
    "crafely_encryption",
)
# The words of a header, in the order in which they stand.
WORDS = ("returns", "one row", "role", "reads", "across users", "uses", "scans", "not null")

# A long list goes on in another line of the same word.
_REPEATED = {"uses", "scans", "not null"}
_WORD = re.compile(r"-- ([a-z][a-z ]*): *(.*)")
_INDEX = re.compile(r"[a-z][a-z0-9_]*")


class SqlFileError(Exception):
    """A SQL file that does not fit its signature or the grammar: ``file:line: what is wrong``."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"sql/{path.parent.name}/{path.name}:{line}: {problem}")
        self.path = path
        self.line = line
        self.problem = problem


class Header(msgspec.Struct, frozen=True):
    """What the comment lines say."""

    description: str
    # "many Thread", "one Agent", "maybe Agent", "count" or "nothing".
    returns: str
    # Who may run it.
    roles: tuple[str, ...] = ROLES[:1]
    # Whether a standby may answer it (replica.py).
    replica: bool = False
    # The indexes that the plan must use.
    uses: tuple[str, ...] = ()
    # Tables that it may read from end to end, each with the reason.
    scans: tuple[tuple[str, str], ...] = ()
    # Columns that are never null, although the server cannot know it.
    not_null: tuple[str, ...] = ()
    # Why one row comes at most, and for «one» at least, where the server's parse tree does not show it.
    one_row: str = ""
    # Why it is about the rows of all users, where their tables may be spread over servers (contract/distribution.py).
    across_users: str = ""
    # The line on which each word stands, for error messages; of each table of «scans», too: "scans usage".
    lines: dict[str, int] = {}


def read_header(path: Path, name: str, source: str) -> tuple[Header, int]:
    """Reads the header of a file whose statement is called ``name``.

    Gives it and the offset at which the statement begins. Raises SqlFileError for a first line that is not the file's
    own name, a missing description, a missing ``returns``, an unknown word or one said twice.
    """
    words: dict[str, str] = {}
    lines: dict[str, int] = {}
    description: list[str] = []
    offset = 0
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        if not line.startswith("--"):
            break
        offset += len(line)
        if number == 1:
            if line.rstrip() != f"-- sql/{name}.sql":
                raise SqlFileError(path, 1, f"the first line must be «-- sql/{name}.sql»")
        elif found := _WORD.fullmatch(line.rstrip()):
            word, value = found.groups()
            _check_word(path, number, word, words)
            words[word] = f"{words[word]}\n{value}" if word in words else value
            lines.setdefault(word, number)
            if word == "scans":
                lines[f"scans {value.partition(',')[0]}"] = number
        elif words:
            raise SqlFileError(path, number, "the description ends where the first word begins")
        else:
            description.append(line.removeprefix("--").strip())
    if not "".join(description):
        raise SqlFileError(path, 2, "a line is missing that says what the statement does")
    if "returns" not in words:
        raise SqlFileError(path, 1, "«returns» is missing")
    header = Header(
        description=" ".join(description),
        returns=words["returns"],
        roles=_list(path, lines, words, "role", ROLES) or ROLES[:1],
        replica=bool(_list(path, lines, words, "reads", ("replica",))),
        uses=_list(path, lines, words, "uses", None),
        scans=_scans(path, lines, words),
        one_row=_because(path, lines, words, "one row"),
        across_users=_because(path, lines, words, "across users"),
        not_null=_list(path, lines, words, "not null", None),
        lines=lines,
    )
    return header, offset


def _check_word(path: Path, number: int, word: str, before: Iterable[str]) -> None:
    if word not in WORDS:
        raise SqlFileError(path, number, f"«{word}» is no word of a header; they are {', '.join(sorted(WORDS))}")
    if word in before and word not in _REPEATED:
        raise SqlFileError(path, number, f"«{word}» is said twice")
    if any(WORDS.index(word) < WORDS.index(earlier) for earlier in before):
        raise SqlFileError(path, number, f"the order of a header is {', '.join(WORDS)}")


def _list(
    path: Path, lines: dict[str, int], words: dict[str, str], word: str, known: tuple[str, ...] | None
) -> tuple[str, ...]:
    if word not in words:
        return ()
    items = tuple(item.strip() for item in words[word].replace("\n", ",").split(","))
    for item in items:
        if not _INDEX.fullmatch(item) or (known and item not in known):
            raise SqlFileError(
                path, lines[word], f"«{word}: {item}» is not {'one of ' + ', '.join(known) if known else 'a name'}"
            )
    return items


def _scans(path: Path, lines: dict[str, int], words: dict[str, str]) -> tuple[tuple[str, str], ...]:
    scans = []
    for value in words["scans"].split("\n") if "scans" in words else ():
        table, comma, reason = value.partition(", because ")
        if not comma or not reason:
            raise SqlFileError(path, lines["scans"], "must be «scans: TABLE, because REASON»")
        scans.append((table, reason))
    return tuple(scans)


def _because(path: Path, lines: dict[str, int], words: dict[str, str], word: str) -> str:
    said = words.get(word, "because ")
    reason = said.removeprefix("because ").strip()
    if word in words and (not reason or reason == said):
        raise SqlFileError(path, lines[word], f"must be «{word}: because REASON»")
    return reason
