"""Request bodies: from bytes to Structs, and from every mistake to a JSON pointer and a rule."""

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, UnsetType

from crafely.api.problems import Problem, invalid
from crafely.api.rules import MAX_NAME, explain, pointer, shape, walk

T = TypeVar("T")

# Levels of arrays and objects within free-form JSON.
MAX_DEPTH = 32

# A moment with its offset. Without one, the same text would mean another moment on another machine.
Timestamp = Annotated[datetime, Meta(tz=True)]

# JSON of the client's own shape, kept as its bytes; check it with free_json. In a Body write
# ``metadata: FreeObject | UnsetType = UNSET``: msgspec knows no union of Raw and None, null arrives as Raw(b"null").
FreeJson = Annotated[Raw, Meta(description="Any JSON.")]
FreeObject = Annotated[Raw, Meta(extra_json_schema={"type": ["object", "null"]})]
FreeArray = Annotated[Raw, Meta(extra_json_schema={"type": ["array", "null"]})]


class Body(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The base of what a client sends: camelCase, no field that is not declared.

    A subclass says ``kw_only=True, frozen=True`` again: msgspec does not inherit the first, mypy not the second.
    """


def decode(data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read a body.

    Takes its bytes and the decoder of its type. Raises Problem: 400 where it is not JSON in UTF-8, 422 with a pointer
    where a value breaks a rule, a name stands twice in one object, or text holds what PostgreSQL cannot store.
    """
    try:
        # msgspec does not look into the strings of a Raw.
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Problem("malformed_json", f"The body is not UTF-8 (byte {error.start}).") from None
    try:
        value = decoder.decode(data)
        escaped = "\\" in text
        if escaped or _may_repeat(text, value):
            _strict(text)
    except (ValueError, RecursionError) as error:
        raise _complaint(error, text, decoder.type) from None
    if escaped and "\\u0000" in text:
        _refuse_nul(text)
    return value


def _may_repeat(text: str, value: Any) -> bool:
    """Whether a name may stand twice in an object of a body without escapes, which has been decoded to a value.

    False is certain, and found in a fraction of the time that the strict pass takes: there is one object, its names are
    the Struct's, and each of them stands at most once between quotes.
    """
    names = _quoted_names(value.__class__)
    if names is None or text.count("{") > 1:
        return True
    for name in names:  # noqa: SIM110 - any() would take twice as long
        if text.count(name) > 1:
            return True
    return False


@cache
def _quoted_names(kind: type[Any]) -> tuple[str, ...] | None:
    """The names that may stand in an object of a Body; None for all other types."""
    if not issubclass(kind, Body):
        return None
    return tuple(f'"{name}"' for name in (*kind.__struct_encode_fields__, kind.__struct_config__.tag_field) if name)


def free_json(
    raw: Raw | UnsetType | None,
    pointer: str,
    *,
    kind: type[dict[str, Any]] | type[list[Any]] | None = None,
    max_bytes: int = 64 * 1024,
) -> Raw | None:
    """Check free-form JSON on its way to a jsonb column and give it back.

    Takes a field of a decoded body, its JSON pointer, the kind it must have (None: any) and its largest size in bytes.
    Gives None for null and for a field that was not sent. Raises Problem (422 at the pointer, or at the place inside):
    another kind, too large, more than 32 levels, a number that PostgreSQL's numeric cannot hold.
    """
    if not isinstance(raw, Raw):
        return None
    data = bytes(raw).strip()
    if data in {b"", b"null"}:
        return None
    if kind is not None and data[:1] != (b"{" if kind is dict else b"["):
        wanted = "an object" if kind is dict else "an array"
        raise invalid(f"expected {wanted}; got {shape(_loose(data.decode()))}", pointer=pointer)
    if len(data) > max_bytes:
        raise invalid(f"expected JSON of at most {max_bytes} bytes; got {len(data)} bytes", pointer=pointer)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _refuse(data.decode(), _too_deep, f"expected at most {MAX_DEPTH} levels of arrays and objects", pointer)
    if _LONG_NUMBER.search(data):
        _refuse(data.decode(), lambda _, node: isinstance(node, _Huge), _NUMBER_RULE, pointer)
    return Raw(data)


def in_utc(value: datetime, *, pointer: str | None = None, parameter: str | None = None) -> datetime:
    """Give a time in UTC.

    Raises Problem (422 at the pointer or parameter) where its offset carries it out of the years 1 to 9999: PostgreSQL
    would store the year 10000, and Python could not read it back.
    """
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise invalid(
            "expected a time within the years 1 to 9999 of UTC", pointer=pointer, parameter=parameter
        ) from None


def decimal_within(value: Decimal, pointer: str, *, precision: int, scale: int, minimum: int = 0) -> Decimal:
    """Check a decimal on its way to a numeric(precision, scale) column and give it back.

    Raises Problem (422 at the pointer) for NaN, infinity, a value below the minimum, more than ``scale`` digits after
    the point (the database would round it) or more than ``precision - scale`` before it.
    """
    if not value.is_finite() or value < minimum:
        raise invalid(f"expected a decimal number of at least {minimum}", pointer=pointer)
    whole = precision - scale
    # scaleb would round to the context's precision, so the digits are counted where they stand.
    if value and (value.adjusted() >= whole or _fraction_digits(value) > scale):
        raise invalid(f"expected at most {whole} digits before the point and {scale} after it", pointer=pointer)
    return value


def _fraction_digits(value: Decimal) -> int:
    text = str(value)
    if "E" not in text:
        # As people write them; as_tuple() takes ten times as long.
        return len(text.partition(".")[2].rstrip("0"))
    _, digits, exponent = value.as_tuple()
    zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
    return -(int(exponent) + zeros)


# Numbers that a double cannot hold, or that PostgreSQL would write out with thousands of digits.
_LONG_NUMBER = re.compile(rb"\d{300,}|[eE][+-]?\d{3,}")
_NUMBER_RULE = "expected a number between -1e300 and 1e300, of at most 300 digits"


class _Huge:
    """A number that is too long or too large to be read."""


class _Members(dict[str, Any]):
    """An object that remembers which name stood in it twice."""

    __slots__ = ("twice",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.twice = next((name for name, count in counts.items() if count > 1), None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _number(text: str) -> float | int | _Huge:
    exponent = re.search(r"[eE]([+-]?\d+)", text)
    if len(text) > 302 or (exponent and (len(exponent[1]) > 5 or abs(int(exponent[1])) > 300)):
        return _Huge()
    return float(text) if "." in text or exponent else int(text)


# msgspec keeps the last of two members with one name, silently; one plain pass more finds them and nothing else. It
# takes 2 µs for a small body and 1.5 ms for a thousand usage records, which is a small part of what storing them takes.
_strict = json.JSONDecoder(object_pairs_hook=_unique).decode
_loose = json.JSONDecoder(object_pairs_hook=_Members, parse_int=_number, parse_float=_number).decode


def _complaint(error: ValueError | RecursionError, text: str, kind: Any) -> Problem:
    """Find out what a failed decoding was about. Slow, and only for bad bodies."""
    if not text.strip():
        return Problem("missing_body")
    try:
        document = _loose(text)
    except RecursionError:
        return invalid("expected fewer levels of arrays and objects", pointer="")
    except ValueError:
        document = ...
    if isinstance(error, msgspec.ValidationError):
        path, rule = explain(error, document, kind)
        return invalid(rule, pointer=pointer(path))
    if document is not ... and (problem := _hidden_fault(document)):
        return problem
    where = str(error) if isinstance(error, msgspec.DecodeError) else "JSON is malformed"
    return Problem("malformed_json", f"{where}.")


def _hidden_fault(document: Any) -> Problem | None:
    """Find what is well-formed JSON and still cannot be taken: half characters, names twice, huge numbers."""
    for path, node in walk(document):
        if isinstance(node, _Members) and node.twice is not None:
            return invalid("this name stands twice in its object", pointer=pointer((*path, node.twice[:MAX_NAME])))
        if isinstance(node, str) and any("\ud800" <= letter <= "\udfff" for letter in node):
            return invalid("text holds half of a surrogate pair", pointer=pointer(_clean(path, node)))
        if isinstance(node, _Huge):
            return invalid(_NUMBER_RULE, pointer=pointer(path))
    return None


def _clean(path: tuple[str | int, ...], node: Any) -> tuple[str | int, ...]:
    """Name the object where a member's name itself is the fault: such a name makes no good pointer."""
    return path[:-1] if path and path[-1] is node else path


def _refuse_nul(text: str) -> None:
    # The six characters may also be the end of an escaped backslash's text, so look at what they mean.
    _refuse(text, lambda _, node: isinstance(node, str) and "\0" in node, "text holds the character U+0000", "")


def _refuse(text: str, bad: Callable[[Any, Any], bool], rule: str, base: str) -> None:
    for path, node in walk(_loose(text)):
        if bad(path, node):
            raise invalid(rule, pointer=base + pointer(_clean(path, node)[:MAX_DEPTH]))


def _too_deep(path: tuple[str | int, ...], node: Any) -> bool:
    return len(path) >= MAX_DEPTH and isinstance(node, dict | list)
