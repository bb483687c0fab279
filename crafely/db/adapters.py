"""How values cross between Python and PostgreSQL, the same on every connection.

Parameters go out as text of no stated type, so that the SQL alone decides what a parameter is: by where it stands or by
a cast. (psycopg would name int2, int4 or int8 by the size of a number and nothing at all for None, which makes several
prepared statements of one query, and each may be planned differently.) Columns come back in binary.
"""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.types.json import set_json_loads
from psycopg.types.numeric import NumericBinaryLoader
from psycopg.types.string import StrDumperUnknown


class _Untyped(Dumper):
    """Writes a value as PostgreSQL reads it, and leaves its type to the server."""

    oid = 0

    def dump(self, obj: Any) -> Buffer | None:
        return str(obj).encode()


class _UntypedBool(_Untyped):
    def dump(self, obj: bool) -> Buffer | None:
        return b"t" if obj else b"f"


class _UntypedRaw(_Untyped):
    def dump(self, obj: msgspec.Raw) -> Buffer | None:
        return bytes(obj)


class _UntypedList(_Untyped):
    """An array of text, numbers or times: ``{"a","b"}``."""

    def dump(self, obj: list[Any]) -> Buffer | None:
        try:
            text = '","'.join(obj)
        except TypeError:  # not all of them are text
            text = "\\"
        # Ids and names, which is what most lists hold, need no look at each of them.
        if obj and "\\" not in text and text.count('"') == 2 * len(obj) - 2:
            return f'{{"{text}"}}'.encode()
        return ("{" + ",".join(map(_element, obj)) + "}").encode()


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f'"{value}"'


class PlainDecimal(Decimal):
    """A ``numeric`` from the database: its text never has an exponent (0.000000000001, not 1E-12)."""

    __slots__ = ()

    def __str__(self) -> str:
        return format(self, "f")


class _PlainNumeric(NumericBinaryLoader):
    def load(self, data: Buffer) -> Decimal:
        return PlainDecimal(super().load(data))


class _Context:
    """What psycopg wants to be given adapters in."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)


def _adapters() -> _Context:
    context = _Context()
    context.adapters.register_dumper(str, StrDumperUnknown)
    for kind in (int, Decimal, date, datetime):
        context.adapters.register_dumper(kind, _Untyped)
    context.adapters.register_dumper(bool, _UntypedBool)
    context.adapters.register_dumper(msgspec.Raw, _UntypedRaw)
    context.adapters.register_dumper(list, _UntypedList)
    # JSON as it stands: nobody parses it on its way to the client.
    set_json_loads(msgspec.Raw, context)
    context.adapters.register_loader("numeric", _PlainNumeric)
    return context


# The ``context`` of every connection.
ADAPTERS = _adapters()
