"""Lists over HTTP: query parameters, pages and the cursor that leads from one page to the next."""

import base64
import binascii
import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, Protocol, TypeVar

import msgspec
from msgspec import Meta

from crafely.api.problems import Problem, invalid

T = TypeVar("T")
RowT = TypeVar("RowT", bound="Positioned")

MAX_ID = 255
# Later than every row: the place where the first page starts.
START = (datetime.max.replace(tzinfo=UTC), "")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CRC = struct.Struct(">I")
_MICROS = struct.Struct(">q")


class Query(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The base of an operation's query parameters: text, int, bool, datetime, Decimal, Literal or a list of them.

    A list stands in one parameter, separated by commas: groupBy=provider,model. A subclass says ``kw_only=True,
    frozen=True`` again: msgspec does not inherit the first, mypy not the second.
    """


class ListQuery(Query, kw_only=True, frozen=True):
    """The parameters that every list takes."""

    take: Annotated[int, Meta(ge=1, le=100, description="How many rows a page has at most.")] = 20
    cursor: (
        Annotated[str, Meta(max_length=512, description="nextCursor of the page before. Not together with skip.")]
        | None
    ) = None
    skip: (
        Annotated[int, Meta(ge=0, le=10_000, description="How many rows to leave out. Prefer cursor: it stays fast.")]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.cursor is not None and self.skip is not None:
            raise invalid("cursor and skip exclude each other; send one of them", parameter="skip")


class Page(msgspec.Struct, Generic[T], kw_only=True, frozen=True, rename="camel"):
    """One page of a list, newest first. nextCursor is null on the last page."""

    data: list[T]
    next_cursor: str | None = None


class Positioned(Protocol):
    """A row that a cursor can point at."""

    @property
    def id(self) -> str: ...  # noqa: D102 - the row's own field
    @property
    def created_at(self) -> datetime: ...  # noqa: D102 - the row's own field


def page(rows: Sequence[RowT], query: ListQuery) -> Page[RowT]:
    """Make a page of rows that were asked for with one more than query.take: the extra row says that more follow."""
    data = list(rows[: query.take])
    last = data[-1] if len(rows) > query.take else None
    return Page(data=data, next_cursor=encode_cursor(last.created_at, last.id) if last is not None else None)


def position(query: ListQuery) -> tuple[datetime, str]:
    """Give (created_at in UTC, id) of the row that the page comes after; later than every row for the first page.

    Raises Problem (422 on the parameter cursor) where the cursor is not one that encode_cursor made.
    """
    return START if query.cursor is None else decode_cursor(query.cursor)


def encode_cursor(created_at: datetime, id: str) -> str:
    """Give the opaque text that stands for a row: base64url of a checksum, the microseconds since 1970 and the id."""
    micros = (created_at - _EPOCH) // timedelta(microseconds=1)
    body = _MICROS.pack(micros) + id.encode()
    return base64.urlsafe_b64encode(_CRC.pack(zlib.crc32(body)) + body).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> tuple[datetime, str]:
    """Give (created_at in UTC, id) of an encoded cursor.

    The checksum finds typing errors; it is no signature, for a cursor opens nothing that a query would not.
    Raises Problem (422 on the parameter cursor) for any other text.
    """
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        (micros,) = _MICROS.unpack_from(raw, _CRC.size)
        id_ = raw[_CRC.size + _MICROS.size :].decode()
        created_at = _EPOCH + timedelta(microseconds=micros)
    except (ValueError, binascii.Error, struct.error, OverflowError):
        raise _bad_cursor() from None
    # Made anew it must be the same: that is the checksum's test, and base64 has several texts for the same bytes.
    if not 0 < len(id_) <= MAX_ID or "\0" in id_ or encode_cursor(created_at, id_) != cursor:
        raise _bad_cursor()
    return created_at, id_


def _bad_cursor() -> Problem:
    return invalid("expected the nextCursor of an earlier page, unchanged", parameter="cursor")
