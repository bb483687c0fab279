"""From an HTTP request to a typed handler and back: what a handler takes and gives is its signature.

    async def get(call: Call, id: str) -> Agent:
        \"\"\"Read one agent.\"\"\"

bind() reads that signature once, at start-up. Parameters are found by name: ``call``, the path's own, ``query`` (a
Query), ``body`` (a Body or a list of them), ``if_match`` (the versions that If-Match names). An answer that is one
row, with id and updated_at, carries its ETag. The answer's type is the return annotation; None answers 204.
"""

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
from aiohttp import HttpVersion11, hdrs, web
from multidict import CIMultiDictProxy

from crafely.api.answer import JSON, Answer
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
from crafely.api.idempotency_keys import IDEMPOTENCY_KEY, once
from crafely.api.pages import ListQuery, Page, Query, decode_cursor, encode_cursor, page, position
from crafely.api.preconditions import IfMatch, entity_tag, unchanged, versions
from crafely.api.problems import FieldError, Problem, found, invalid
from crafely.api.queries import reader
from crafely.api.router import Router
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
    "current_request",
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

Handler = Callable[..., Awaitable[Any]]

# A route's permission where any authenticated caller is welcome.
AUTHENTICATED = ""
# The id of the request that is being answered, for what is done in its task, or in one that it has begun.
current_request: ContextVar[str] = ContextVar("current_request", default="")


class Services(Protocol):
    """What this module needs of the process. The application's own object has more, and handlers see all of it."""

    def known(self, token: str) -> Caller | None:
        """Give the caller of a token that has just been authenticated; None says only that one has to ask."""

    async def authenticate(self, token: str, request: web.BaseRequest) -> Caller:
        """Give the caller behind a request's bearer token or API key. Raises what problems.from_exception knows."""

    async def admit(self, caller: Caller) -> bytes:
        """Count a request of a caller, and give the header lines that say how its limits stand. Raises Exceeded."""


class Route(msgspec.Struct, frozen=True):
    """One line of the route table.

    The permission None is public: nobody is authenticated. AUTHENTICATED asks for a caller, no permission.
    A handler that gives bytes is answered as it stands, and only that may have a media_type other than JSON. A POST
    that is safe changes nothing: an Idempotency-Key makes no difference to it.
    """

    method: str
    path: str
    handler: Handler
    permission: str | None
    status: int = 200
    media_type: str = "application/json"
    safe: bool = False

    @property
    def once(self) -> bool:
        """Whether it is done once, however often it is sent, if it has an Idempotency-Key."""
        return self.method == "POST" and not self.safe


class Call:
    """One request as a handler sees it.

    ``caller`` is None on public routes, which its annotation spares all others. ``headers`` go out with the answer if
    it succeeds, ``limits`` (header lines, each with its break) with any. ``services`` is what the application was built
    with. ``values`` are those of the path's parameters. ``transaction`` is that of the whole request, where it is one.
    """

    __slots__ = ("caller", "headers", "limits", "request", "request_id", "services", "transaction", "values")

    caller: Caller

    def __init__(self, request: web.BaseRequest, request_id: str, services: Any) -> None:
        self.caller = None  # type: ignore[assignment]  # see above
        self.request = request
        self.request_id = request_id
        self.services = services
        self.headers: dict[str, str] = {}
        self.limits = b""
        self.values: Sequence[str] = ()
        self.transaction: Any = None


class Operation(NamedTuple):
    """What a handler's signature says. ``query`` and ``body`` are None where the handler takes none.

    ``tagged`` says that its answer is one row, which has an ETag; ``if_match`` that it takes If-Match.
    """

    noun: str
    name: str
    summary: str
    description: str
    parameters: tuple[str, ...]
    query: type[Query] | None
    body: Any
    answer: Any
    tagged: bool
    if_match: bool


MAX_PARAMETER = 255

_PARAMETER = re.compile(r"{(\w+)}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


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
    if {*path, "call"} != {*names} - {"query", "body", "if_match"} or any(hints[name] is not str for name in path):
        expected = ", ".join(["call", *(f"{name}: str" for name in path)])
        raise TypeError(f"{where}: expected the parameters {expected} and perhaps query, body, if_match; got {names}")
    if hints.get("if_match", IfMatch) != IfMatch:
        raise TypeError(f"{where}: if_match is IfMatch; got {hints['if_match']}")
    query = hints.get("query")
    if query is not None and not (isinstance(query, type) and issubclass(query, Query)):
        raise TypeError(f"{where}: query is a subclass of Query; got {query}")
    if route.media_type != JSON and hints["return"] is not bytes:
        raise TypeError(f"{where}: an answer that is {route.media_type} is bytes; got {hints['return']}")
    noun = handler.__module__.rpartition(".")[2]
    tagged = {"id", "updated_at"} <= {*getattr(hints["return"], "__struct_fields__", ())}
    return Operation(
        noun,
        name.rstrip("_"),  # list_ is a handler that leaves Python's own list alone
        summary,
        description.strip(),
        path,
        query,
        hints.get("body"),
        hints["return"],
        tagged,
        "if_match" in names,
    )


def bind(route: Route, services: Services) -> Callable[[Call], Awaitable[Answer]]:
    """Make what answers the calls of a route: authenticate, read what the signature asks for, ask the handler, encode.

    Raises TypeError as signature() does.
    """
    operation = signature(route)
    read_query = reader(operation.query) if operation.query is not None else None
    decoder = msgspec.json.Decoder(operation.body) if operation.body is not None else None
    handler, permission, parameters = route.handler, route.permission, operation.parameters
    # With what a query asks for besides, it is another answer, which has no tag.
    plain = operation.query() if operation.tagged and operation.query else None
    is_once = route.once

    async def serve(call: Call) -> Answer:
        request = call.request
        headers = request.headers
        if permission is not None:
            credentials = token(headers)
            caller = services.known(credentials)
            if caller is None:
                caller = await services.authenticate(credentials, request)
            call.caller = caller
            call.limits = await services.admit(caller)
            if permission != AUTHENTICATED and not allows(caller.permissions, permission):
                raise Problem("insufficient_permissions", f"This takes the permission {permission}.")
        arguments: dict[str, Any] = {}
        if parameters:
            arguments = {name: _parameter(name, value) for name, value in zip(parameters, call.values, strict=True)}
        if read_query is not None:
            arguments["query"] = read_query(request)
        elif "?" in request.raw_path and request.rel_url.raw_query_string:
            name = next(iter(request.query), "")
            raise invalid("no such parameter; this operation takes none", parameter=name[:64])
        if operation.if_match:
            arguments["if_match"] = versions(headers)
        elif hdrs.IF_MATCH in headers:
            _refuse_if_match(request)
        sent = b""
        if decoder is not None:
            body = _small_body(request, headers)
            sent = body if body is not None else await request.read()
            arguments["body"] = decode(sent, decoder)
        is_plain = arguments.get("query") == plain
        if is_once and IDEMPOTENCY_KEY in headers:
            finish = partial(_answer, call, route, operation, plain=is_plain)
            return await once(call, sent, partial(handler, call, **arguments), finish)
        return _answer(call, route, operation, await handler(call, **arguments), plain=is_plain)

    return serve


def _refuse_if_match(request: web.BaseRequest) -> None:
    """Where nothing is changed it may stand; elsewhere, ignored, it would not protect who counts on it."""
    if request.method not in {"GET", "HEAD"}:
        raise invalid("no such precondition; this operation takes none", parameter="If-Match")


def _answer(call: Call, route: Route, operation: Operation, result: Any, *, plain: bool) -> Answer:
    if operation.tagged:
        headers = call.request.headers
        tag = entity_tag(result)
        if plain:
            call.headers["ETag"] = tag
        # Looked at where the answer has no tag, too: what is no list of tags is refused there as well.
        if route.method == "GET" and hdrs.IF_NONE_MATCH in headers and unchanged(headers, tag) and plain:
            return Answer(304, None, headers=call.headers)
    if result is None:
        return Answer(204, None, headers=call.headers)
    body = result if isinstance(result, bytes) else encode(result)
    return Answer(route.status, body, route.media_type, call.headers)


def mount(routes: Sequence[Route], services: Services) -> Router:
    """Make the router of a route table. Raises TypeError as signature() does."""
    router = Router()
    for route in routes:
        router.add(route.method, route.path, bind(route, services))
    return router


def token(headers: CIMultiDictProxy[str]) -> str:
    """Give the credentials of a request: Authorization: Bearer, else X-API-Key.

    Raises Problem: 401 without them, 400 where the header stands twice, for whoever stands in front of this server
    might have looked at the other one.
    """
    given = headers.getall(hdrs.AUTHORIZATION, None)
    if given is not None:
        scheme, _, key = given[0].partition(" ")
        if scheme.lower() != "bearer" and len(given) == 1:
            raise Problem("unauthenticated", "The Authorization header is not of the scheme Bearer.")
    else:
        given = headers.getall("X-API-Key", [""])
        key = given[0]
    if len(given) > 1:
        raise Problem("bad_request", "The header with the credentials stands more than once.")
    key = key.strip()
    if not key:
        raise Problem("unauthenticated")
    return key


def _parameter(name: str, value: str) -> str:
    if len(value) > MAX_PARAMETER or _CONTROL.search(value):
        raise invalid(f"expected at most {MAX_PARAMETER} characters, none of them a control character", parameter=name)
    return value


def _small_body(request: web.BaseRequest, headers: CIMultiDictProxy[str]) -> bytes | None:
    """Give the body if all of it came along with the head, as small ones do; None: it may be waited for.

    Raises Problem where no other body than the one announced would help.
    """
    content = request.content
    if content.at_eof():
        raise Problem("missing_body")
    given = headers.get(hdrs.CONTENT_TYPE, "")
    if given != JSON:
        media_type, _, charset = given.partition(";")
        charset = charset.strip().lower().replace('"', "")
        if media_type.strip().lower() != JSON or charset not in {"", "charset=utf-8"}:
            raise Problem("unsupported_media_type")
    # Nothing has unpacked it: the server leaves a body as it was sent.
    if hdrs.CONTENT_ENCODING in headers and headers[hdrs.CONTENT_ENCODING].lower() != "identity":
        raise Problem("unsupported_media_type")
    if hdrs.EXPECT in headers and request.version == HttpVersion11:
        _encourage(request)
    if not content.is_eof():
        if int(headers.get(hdrs.CONTENT_LENGTH, 0)) > request.client_max_size:
            raise _too_large(request)
        return None
    body = content.read_nowait()
    if len(body) > request.client_max_size:
        raise _too_large(request)
    return body


def _too_large(request: web.BaseRequest) -> Problem:
    return Problem("too_large", f"The body may have {request.client_max_size} bytes.")


def _encourage(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body, after everything that could speak against it."""
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise Problem("expectation_failed")
    if int(request.headers.get(hdrs.CONTENT_LENGTH, 0)) > request.client_max_size:
        raise _too_large(request)
    transport = request.transport
    if transport is not None and not request.content.is_eof():
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
