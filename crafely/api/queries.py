"""Query strings: from text to a Query, and from every mistake to the parameter's name and a rule."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import inspect

from crafely.api.pages import Query
from crafely.api.problems import Problem, invalid
from crafely.api.rules import MAX_NAME, explain

QueryT = TypeVar("QueryT", bound=Query)

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_BOOLEANS = {"true": True, "false": False}
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def reader(kind: type[QueryT]) -> Callable[[web.BaseRequest], QueryT]:
    """Make the function that reads a request's query string into a Query.

    It raises Problem (422 on the parameter) for an unknown parameter, one that stands twice, and every value that
    breaks its rule. Where nothing is required, a request without a query string costs nothing.
    """
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)  # noqa: S101 - a Query is one
    parsers = {field.encode_name: _parser(field.type) for field in info.fields}
    default = None if any(field.required for field in info.fields) else kind()

    def read(request: web.BaseRequest) -> QueryT:
        if default is not None and not request.rel_url.raw_query_string:
            return default
        values: dict[str, Any] = {}
        for name, text in request.query.items():
            parse = parsers.get(name)
            if parse is None:
                known = ", ".join(parsers)
                raise invalid(f"no such parameter; this operation takes {known}", parameter=_shown(name))
            if name in values:
                raise invalid("expected once; got it more than once", parameter=name)
            if _UNSTORABLE.search(text):
                raise invalid("text holds a character that cannot be stored", parameter=name)
            values[name] = parse(text)
        try:
            return msgspec.convert(values, kind)
        except msgspec.ValidationError as error:
            raise _complaint(error, values, kind) from None

    return read


def _complaint(error: msgspec.ValidationError, values: dict[str, Any], kind: type[Query]) -> Problem:
    path, rule = explain(error, values, kind)
    return invalid(rule, parameter=str(path[0]) if path else None)


def _shown(name: str) -> str:
    return name[:MAX_NAME].encode(errors="replace").decode()


def _parser(type_: inspect.Type) -> Callable[[str], Any]:
    """Choose how a parameter's text is read. What cannot be read stays text, and the type's own check refuses it."""
    match type_:
        case inspect.Metadata():
            return _parser(type_.type)
        case inspect.UnionType():
            return _parser(next(part for part in type_.types if not isinstance(part, inspect.NoneType)))
        case inspect.IntType():
            return lambda text: int(text) if _INTEGER.fullmatch(text) else text
        case inspect.BoolType():
            return lambda text: _BOOLEANS.get(text, text)
        case inspect.ListType() | inspect.VarTupleType():
            return lambda text: text.split(",") if text else []
    return str
