"""Reads PostgreSQL's own text of a parse tree (pg_node_tree), which stands in pg_proc.prosqlbody.

The format is that of src/backend/nodes/outfuncs.c and readfuncs.c: ``{QUERY :commandType 1 :rtable ({…} {…}) …}``.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# A node, by field name; "" is its type, in capital letters as it stands.
Node = Mapping[str, Any]
# What a field holds: a node, a list of values, a word, or None for <>.
Value = Any

_TOKEN = re.compile(
    r"""
      \s+
    | (?: \d+\ )? \[ (?P<bytes> [-\d\ ]* ) \]     # the bytes of a constant, behind their number
    | (?P<open> \{ ) (?P<kind> \w+ )
    | (?P<close> [)}] )
    | (?P<list> \( ) (?: (?P<listed> [iobx] ) (?= \s | \) ) )?
    | : (?P<field> \w+ )
    | "(?P<string> (?: \\. | [^"\\] )* )"
    | (?P<word> (?: \\. | [^\s(){}\\] )+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse(text: str) -> Value:
    """The value that a text stands for. Raises ValueError for what is no node tree."""
    outermost: list[Value] = []
    # What is open, the innermost last. A node is a dict that has the field that is being read under None.
    stack: list[Any] = [outermost]
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup
        if kind is None:
            continue
        top = stack[-1]
        # Behind a field comes its value, which may look like a field.
        if kind == "field" and isinstance(top, list):
            raise ValueError(f"a field outside of a node: {found[0]}")
        if kind == "field" and top.get(None, "") in top:
            top[None] = found["field"]
        elif kind == "close":
            if isinstance(top, dict):
                top.pop(None, None)
            stack.pop()
        else:
            value = _value(kind, found)
            if isinstance(top, list):
                top.append(value)
            else:
                top.setdefault(top[None], value)
            if kind in {"kind", "list", "listed"}:
                stack.append(value)
    if len(stack) != 1 or len(outermost) != 1:
        raise ValueError("a node tree that does not end where it should")
    return outermost[0]


def _value(kind: str, found: re.Match[str]) -> Value:
    match kind:
        case "kind":
            return {"": found["kind"]}
        case "list" | "listed":
            return []
        case "bytes":
            return [int(byte) for byte in found["bytes"].split()]
        case "string":
            return _ESCAPE.sub(r"\1", found["string"])
    word = found[0]
    return None if word == "<>" else _ESCAPE.sub(r"\1", word) if "\\" in word else word


def walk(value: Value, *, into_queries: bool = True) -> Iterator[Node]:
    """Every node in a value, itself first; on wish not those of a subquery."""
    if isinstance(value, dict):
        if value[""] == "QUERY" and not into_queries:
            return
        yield value
    for below in value.values() if isinstance(value, dict) else value or ():
        if isinstance(below, dict | list):
            yield from walk(below, into_queries=into_queries)
