"""Entity tags, and what clients ask with them: If-Match and If-None-Match (RFC 9110, sections 8.8.3 and 13).

A tag is the moment of a row's last change, which is another one for each change (``set_updated_at()`` sees to it). Of a
key that has been used, the moment of its last use stands behind a hyphen: it makes another answer, but no other
version of the key, so If-Match does not look at it.
"""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from aiohttp import hdrs
from multidict import CIMultiDictProxy

from crafely.api.problems import Problem, found, invalid

T = TypeVar("T")

# The versions that a client names: when each was made, in UTC; None: whichever is there.
IfMatch = list[datetime] | None

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TAG = r'(?:W/)?"[^"\x00-\x20\x7f]*"'
# An asterisk, or a list of tags; a list may have empty elements.
TAGS = rf"^[ \t,]*(?:\*|{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*)[ \t,]*$"
_TAGS = re.compile(TAGS)
_OURS = re.compile(r"([0-9a-f]{1,16})(?:-[0-9a-f]{1,16})?")
_RULE = 'expected * or a list of entity tags, such as "63a4f1c5d2e80"'


class Versioned(Protocol):
    """A row that knows when it was changed."""

    @property
    def updated_at(self) -> datetime: ...  # noqa: D102 - the row's own field


def entity_tag(row: Versioned) -> str:
    """Give the strong tag of a row's answer, in its quotes."""
    used: datetime | None = getattr(row, "last_used_at", None)
    version = (row.updated_at - _EPOCH) // _MICROSECOND
    return f'"{version:x}"' if used is None else f'"{version:x}-{(used - _EPOCH) // _MICROSECOND:x}"'


_MICROSECOND = timedelta(microseconds=1)


def versions(headers: CIMultiDictProxy[str]) -> IfMatch:
    """Give the versions that If-Match names; a weak tag, and one that is not ours, names none.

    Raises Problem (422 at the header) where it is no list of tags.
    """
    if hdrs.IF_MATCH not in headers or (tags := _tags(headers, "If-Match")) is None:
        return None
    named = (_OURS.fullmatch(tag) for weak, tag in tags if not weak)
    micros = (int(match[1], 16) for match in named if match is not None)
    return [_EPOCH + timedelta(microseconds=number) for number in micros if number < _END]


_END = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def unchanged(headers: CIMultiDictProxy[str], tag: str) -> bool:
    """Whether If-None-Match names this tag, weakly or not. Raises Problem (422 at the header)."""
    tags = _tags(headers, "If-None-Match")
    return tags is None or any(f'"{one}"' == tag for _, one in tags)


def _tags(headers: CIMultiDictProxy[str], name: str) -> list[tuple[bool, str]] | None:
    """Each tag of a header: whether it is weak, and what stands in its quotes; None for an asterisk."""
    text = ",".join(headers.getall(name))
    if not _TAGS.search(text):
        raise invalid(_RULE, parameter=name)
    tags = re.findall(_TAG, text)
    return [(tag.startswith("W/"), tag.removeprefix("W/")[1:-1]) for tag in tags] if tags else None


async def matched(row: T | None, if_match: IfMatch, look: Callable[[], Awaitable[object]]) -> T:
    """Give what a statement made of a row if it is there and one of the versions that the client named.

    Takes its result (None: no such row), the versions, and what reads the row as it is. Raises Problem: 404 where there
    is none, 412 where it is another version.
    """
    if row is None and if_match is not None and await look() is not None:
        raise Problem("precondition_failed")
    return found(row)
