"""From an HTTP request to a typed handler and back: what a handler takes and gives is its signature.

    async def get(call: Call, id: str) -> Agent:
        \"\"\"Read one agent.\"\"\"

bind() reads that signature once, at start-up. Parameters are found by name: ``call``, the path's own, ``query`` (a
Query), ``body`` (a Body or a list of them). The answer's type is the return annotation; None answers 204.
"""

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

import msgspec
from aiohttp import web

from crafely.api.bodies import (
    Body,
    FreeArray,
    FreeJson,
    FreeObject,
    Timestamp,
    decimal_within,
    decode,
    free_json,
    in_utc,
)
from crafely.api.pages import ListQuery, Page, Query, decode_cursor, encode_cursor, page, position
from crafely.api.problems import FieldError, Problem, found, invalid
from crafely.api.queries import reader
from crafely.auth import Caller
from crafely.auth.permissions import allows

__all__ = [
    "AUTHENTICATED",
    "Body",
    "Call",
    "Caller",
    "FieldError",
    "FreeArray",
    "FreeJson",
    "FreeObject",
    "Handler",
    "ListQuery",
    "Operation",
    "Page",
    "Problem",
    "Query",
    "Route",
    "Services",
    "Timestamp",
    "bind",
    "decimal_within",
    "decode",
    "decode_cursor",
    "encode_cursor",
    "found",
    "free_json",
    "in_utc",
    "invalid",
    "mount",
    "page",
    "position",
    "signature",
]

# What the middleware and the handlers tell each other.
REQUEST_ID_KEY = web.RequestKey("request_id", str)
CALLER_KEY = web.RequestKey("caller", Caller)

Handler = Callable[..., Awaitable[Any]]

# A route's permission where any authenticated caller is welcome.
AUTHENTICATED = ""


class Services(Protocol):
    """What this module needs of the process. The application's own object has more, and handlers see all of it."""

    async def authenticate(self, token: str) -> Caller:
        """Give the caller behind a bearer token or an API key. Raises what problems.from_exception knows."""


class Route(msgspec.Struct, frozen=True):
    """One line of the route table.

    The permission None is public: nobody is authenticated. AUTHENTICATED asks for a caller, no permission.
    A handler that gives bytes is answered as it stands, and only that may have a media_type other than JSON.
    """

    method: str
    path: str
    handler: Handler
    permission: str | None
    status: int = 200
    media_type: str = "application/json"


class Call:
    """One request as a handler sees it.

    ``caller`` is not set on public routes. ``headers`` go out with the answer if it succeeds. ``services`` is what the
    application was built with.
    """

    __slots__ = ("caller", "headers", "request", "request_id", "services")

    caller: Caller

    def __init__(self, request: web.Request, services: Any) -> None:
        self.request = request
        self.request_id: str = request[REQUEST_ID_KEY]
        self.services = services
        self.headers: dict[str, str] = {}


class Operation(NamedTuple):
    """What a handler's signature says. ``query`` and ``body`` are None where the handler takes none."""

    noun: str
    name: str
    summary: str
    description: str
    parameters: tuple[str, ...]
    query: type[Query] | None
    body: Any
    answer: Any


MAX_PARAMETER = 255

_PARAMETER = re.compile(r"{(\w+)}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_JSON = "application/json"
# What every answer carries. Nothing here may be kept by a cache or guessed to be of another type.
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Server": "crafely"}


def _plain(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise NotImplementedError(f"{type(value)} has no JSON form")


# msgspec writes a Decimal as str() does, with an exponent for small ones; those from the database come as a subclass
# that it hands to the hook.
encode = msgspec.json.Encoder(decimal_format="string", enc_hook=_plain).encode


def signature(route: Route) -> Operation:
    """Read a handler's signature and docstring.

    Raises TypeError, naming the route and the handler, where documentation or an annotation is missing, or where the
    parameters are not those of the path.
    """
    handler = route.handler
    name = getattr(handler, "__name__", "?")
    where = f"{route.method} {route.path} ({handler.__module__}.{name})"
    summary, _, description = (inspect.getdoc(handler) or "").partition("\n")
    if not summary:
        raise TypeError(f"{where}: no documentation, no route: give the handler a docstring")
    hints = typing.get_type_hints(handler, include_extras=True)
    names = list(inspect.signature(handler).parameters)
    if missing := [name for name in [*names, "return"] if name not in hints]:
        raise TypeError(f"{where}: no annotation for {', '.join(missing)}")
    path = tuple(_PARAMETER.findall(route.path))
    if {*path, "call"} != {*names} - {"query", "body"} or any(hints[name] is not str for name in path):
        expected = ", ".join(["call", *(f"{name}: str" for name in path)])
        raise TypeError(f"{where}: expected the parameters {expected} and perhaps query and body; got {names}")
    query = hints.get("query")
    if query is not None and not (isinstance(query, type) and issubclass(query, Query)):
        raise TypeError(f"{where}: query is a subclass of Query; got {query}")
    if route.media_type != _JSON and hints["return"] is not bytes:
        raise TypeError(f"{where}: an answer that is {route.media_type} is bytes; got {hints['return']}")
    noun = handler.__module__.rpartition(".")[2]
    # list_ is a handler that leaves Python's own list alone.
    return Operation(
        noun, name.rstrip("_"), summary, description.strip(), path, query, hints.get("body"), hints["return"]
    )


def bind(route: Route, services: Services) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Make the aiohttp handler of a route: authenticate, read what the signature asks for, call, answer.

    Raises TypeError as signature() does.
    """
    operation = signature(route)
    read_query = reader(operation.query) if operation.query is not None else None
    decoder = msgspec.json.Decoder(operation.body) if operation.body is not None else None
    template = {**HEADERS, "Content-Type": route.media_type}
    raw = operation.answer is bytes
    handler, permission, parameters, status = route.handler, route.permission, operation.parameters, route.status

    async def serve(request: web.Request) -> web.Response:
        call = Call(request, services)
        if permission is not None:
            caller = call.caller = request[CALLER_KEY] = await services.authenticate(token(request.headers))
            if permission != AUTHENTICATED and not allows(caller.permissions, permission):
                raise Problem("insufficient_permissions", f"This takes the permission {permission}.")
        arguments: dict[str, Any] = {name: _parameter(request, name) for name in parameters}
        if read_query is not None:
            arguments["query"] = read_query(request)
        elif request.rel_url.raw_query_string:
            name = next(iter(request.query), "")
            raise invalid("no such parameter; this operation takes none", parameter=name[:64])
        if decoder is not None:
            arguments["body"] = decode(await _body(request), decoder)
        result = await handler(call, **arguments)
        if result is None:
            return web.Response(status=204, headers={**HEADERS, **call.headers})
        body = result if raw else encode(result)
        return web.Response(body=body, status=status, headers={**template, **call.headers})

    return serve


def mount(app: web.Application, routes: list[Route], services: Services) -> None:
    """Add every route to the application; HEAD is answered wherever GET is. Raises TypeError as signature() does."""
    for route in routes:
        serve = bind(route, services)
        resource = app.router.add_resource(route.path)
        resource.add_route(route.method, serve)
        if route.method == "GET":
            resource.add_route("HEAD", serve)


def token(headers: Mapping[str, str]) -> str:
    """Give the credentials of a request: Authorization: Bearer, else X-API-Key. Raises Problem (401)."""
    authorization = headers.get("Authorization")
    if authorization is None:
        key = headers.get("X-API-Key", "").strip()
    else:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer":
            raise Problem("unauthenticated", "The Authorization header is not of the scheme Bearer.")
    if not key:
        raise Problem("unauthenticated")
    return key


def _parameter(request: web.Request, name: str) -> str:
    value = request.match_info[name]
    if len(value) > MAX_PARAMETER or _CONTROL.search(value):
        raise invalid(f"expected at most {MAX_PARAMETER} characters, none of them a control character", parameter=name)
    return value


async def _body(request: web.Request) -> bytes:
    headers = request.headers
    if not request.can_read_body:
        raise Problem("missing_body")
    media_type, _, charset = headers.get("Content-Type", "").partition(";")
    charset = charset.strip().lower().replace('"', "")
    if media_type.strip().lower() != _JSON or charset not in {"", "charset=utf-8"}:
        raise Problem("unsupported_media_type")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem("unsupported_media_type")
    if (request.content_length or 0) > request.client_max_size:
        raise Problem("too_large", f"The body may have {request.client_max_size} bytes.")
    return await request.read()
