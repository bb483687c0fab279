"""Finds the ``:name`` parameters of a SQL text, and nothing that merely looks like one.

The rules are PostgreSQL's own (Lexical Structure, https://www.postgresql.org/docs/current/sql-syntax-lexical.html):
strings with doubled quotes, escape strings, quoted identifiers, nested block comments, dollar quotes, and casts.
"""

import re
from collections.abc import Iterator

# One alternative for each kind of text in which a colon is only a colon; the last one is a parameter. What no
# alternative matches is passed over a character at a time. Block comments nest, so only their start is matched here.
_TOKEN = re.compile(
    r"""
      (?P<line_comment> --[^\n]* )
    | (?P<block_comment> /\* )
    | (?P<escape_string> (?<![\w$]) [eE] ' (?: [^'\\] | '' | \\. )* (?P<escape_string_end> ' )? )
    | (?P<string> ' (?: [^'] | '' )* (?P<string_end> ' )? )
    | (?P<identifier> " (?: [^"] | "" )* (?P<identifier_end> " )? )
    | (?P<dollar_quote> (?<![\w$]) \$ (?: [^\W\d] \w* )? \$ )
    | (?P<cast> :: | := )
    | : (?P<parameter> [^\W\d] \w* )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")


class LexerError(ValueError):
    """A text that ends inside a string, an identifier, a comment or a dollar quote. ``position`` is where it began."""

    def __init__(self, what: str, position: int) -> None:
        super().__init__(f"{what} is never closed")
        self.position = position


def parameters(text: str) -> Iterator[tuple[int, int, str]]:
    """The parameters of a SQL text, in order: start and end offset of ``:name``, and the name.

    Raises LexerError for a text that is not closed.
    """
    for kind, start, end in _tokens(text):
        if kind == "parameter":
            yield start, end, text[start + 1 : end]


def words(text: str) -> str:
    """The text with blanks for all that is no word of SQL: strings, quoted names, comments, parameters.

    As long as the text, with the same lines. Raises LexerError for a text that is not closed.
    """
    blanked = list(text)
    for kind, start, end in _tokens(text):
        if kind != "cast":
            blanked[start:end] = [character if character == "\n" else " " for character in text[start:end]]
    return "".join(blanked)


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    position = 0
    while found := _TOKEN.search(text, position):
        position = found.end()
        match found.lastgroup:
            case "block_comment":
                position = _end_of_comment(text, found.start())
            case "dollar_quote":
                position = text.find(found[0], position) + len(found[0])
                if position < found.end() + len(found[0]):
                    raise LexerError(f"the dollar quote {found[0]}", found.start())
            case "escape_string" | "string" | "identifier" as kind if not found[f"{kind}_end"]:
                raise LexerError(f"a quoted {'identifier' if kind == 'identifier' else 'string'}", found.start())
        yield str(found.lastgroup), found.start(), position


def _end_of_comment(text: str, start: int) -> int:
    depth = 0
    for mark in _COMMENT_MARK.finditer(text, start):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    raise LexerError("a comment", start)
