"""What is wrong with a value, in words: msgspec's message becomes a place, a rule and the shape of what came."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

Path = tuple[str | int, ...]

_TIME = "an RFC 3339 time with its offset, such as 2025-01-31T12:00:00Z"

# The names that msgspec uses, as a client knows them.
_NAMES = {
    "array": "an array",
    "bool": "true or false",
    "date": "an RFC 3339 date",
    "datetime": _TIME,
    "decimal": "a decimal number",
    "float": "a number",
    "int": "an integer",
    "null": "null",
    "object": "an object",
    "str": "a string",
    "uuid": "a UUID",
}
_UNITS = {"array": "items", "object": "members", "str": "characters"}
_INVALID = {
    "Invalid RFC3339": f"expected {_TIME}",
    "Invalid decimal": "expected a decimal number, such as 0.000125",
    "Number out of range": "expected a number in the range of a double",
    "Integer value out of range": "expected an integer of at most 64 bits",
}

_AT = re.compile(r" - at `(?:key in )?\$([^`]*)`$")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[(\d+)\]")
_EXPECTED = re.compile(r"Expected `([^`]+)`(?:,? ?(.*))?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_LENGTH = re.compile(r"of length (<=|>=|==) (\d+)")
_BOUND = re.compile(r"(<=|>=|<|>) (\S+)")
_AMOUNT = {"<=": "at most ", ">=": "at least ", "==": "exactly ", "<": "less than ", ">": "more than "}

MAX_NAME = 64


def explain(error: msgspec.ValidationError, value: Any, kind: Any) -> tuple[Path, str]:
    """Give the path to the bad value and one sentence: the rule it breaks, then its shape (never the value).

    Takes msgspec's error, the same input decoded without a type (... where that failed too) and the type it was
    decoded into.
    """
    message = str(error)
    path: Path = ()
    if at := _AT.search(message):
        message = message[: at.start()]
        path = tuple(name or int(index) for name, index in _STEP.findall(at[1]))
    if unknown := _UNKNOWN.fullmatch(message):
        known = ", ".join(_fields(kind, path)) or "none"
        return (*path, unknown[1][:MAX_NAME]), f"unknown field; the fields here are {known}"
    if missing := _MISSING.fullmatch(message):
        return (*path, missing[1]), "required, but missing"
    found = shape(_at(value, path))
    return path, _rule(message, kind, path) + (f"; got {found}" if found else "")


def pointer(path: Path) -> str:
    """Give a path as a JSON pointer (RFC 6901); the whole document is the empty pointer."""
    text = "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)
    # A member's name may hold half of a surrogate pair, which no answer could carry.
    return text.encode(errors="replace").decode()


def shape(value: Any) -> str:
    """Say what a decoded JSON value looks like, without showing it. An unknown value (...) gives no words."""
    words = ""
    match value:
        case None:
            words = "null"
        case bool():
            words = "a boolean"
        case str():
            words = f"a string of {_count(len(value), 'character')}"
        case int():
            words = f"an integer of {_count(len(str(abs(value))), 'digit')}{' below zero' if value < 0 else ''}"
        case float():
            words = "a number with a fraction or an exponent"
        case list():
            words = f"an array of {_count(len(value), 'item')}"
        case dict():
            words = f"an object with {_count(len(value), 'member')}"
    return words


def walk(value: Any) -> Iterator[tuple[Path, Any]]:
    """Go through a decoded JSON document: every value, and every member's name as a value at its member's path."""
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        if isinstance(node, dict):
            for name, member in node.items():
                yield (*path, name), name
                waiting.append(((*path, name), member))
        elif isinstance(node, list):
            waiting.extend(((*path, index), item) for index, item in enumerate(node))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rule(message: str, kind: Any, path: Path) -> str:
    if message.startswith("Invalid enum value"):
        options = [option for leaf in _types(kind, path) for option in getattr(leaf, "values", ())]
        return "expected one of " + ", ".join(str(option) for option in options)
    if "timezone component" in message:
        return f"expected {_TIME}"
    for start, rule in _INVALID.items():
        if message.startswith(start):
            return rule
    if expected := _EXPECTED.fullmatch(message):
        return "expected " + _expected(expected[1].split(" | "), expected[2] or "")
    return message[:1].lower() + message[1:]


def _expected(kinds: list[str], limit: str) -> str:
    words = " or ".join(_NAMES.get(name, name) for name in kinds)
    if length := _LENGTH.match(limit):
        return f"{words} of {_AMOUNT[length[1]]}{length[2]} {_UNITS.get(kinds[0], 'items')}"
    if bound := _BOUND.match(limit):
        return f"{words} of {_AMOUNT[bound[1]]}{bound[2]}"
    return f"{words} {limit}" if limit.startswith("matching regex") else words


def _at(value: Any, path: Path) -> Any:
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return ...
    return value


def _types(kind: Any, path: Path) -> list[inspect.Type]:
    """Every type that may stand at a path of a document of this kind."""
    found = _flat(inspect.type_info(kind))
    for step in path:
        inner: list[inspect.Type] = []
        for type_ in found:
            if isinstance(step, int) and isinstance(type_, inspect.ListType | inspect.VarTupleType):
                inner += _flat(type_.item_type)
            elif isinstance(type_, inspect.StructType):
                inner += [leaf for field in type_.fields if field.encode_name == step for leaf in _flat(field.type)]
        found = inner
    return found


def _flat(type_: inspect.Type) -> list[inspect.Type]:
    while isinstance(type_, inspect.Metadata):
        type_ = type_.type
    return [leaf for part in type_.types for leaf in _flat(part)] if isinstance(type_, inspect.UnionType) else [type_]


def _fields(kind: Any, path: Path) -> list[str]:
    structs = [leaf for leaf in _types(kind, path) if isinstance(leaf, inspect.StructType)]
    return [field.encode_name for struct in structs for field in struct.fields]
