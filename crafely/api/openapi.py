"""The API's description, OpenAPI 3.1, from the same route table and the same Structs that serve it."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import inspect

import crafely
from crafely.api import idempotency_keys, preconditions
from crafely.api.problems import CODES, CONTENT_TYPE, Problem, ProblemDetails
from crafely.api.wire import AUTHENTICATED, MAX_PARAMETER, Body, Operation, Route, signature

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_DESCRIPTION = """\
API keys, agents, threads, packages, subscriptions and usage.

Names are camelCase, times RFC 3339 in UTC, decimals strings. Lists give a page and the cursor to the next one. Every
answer carries X-Request-Id: that of the request if it had one, else a new one. Errors are problem details (RFC 9457).
Limits of requests a minute hold for each API key, and for all keys and sessions of a user together.
"""
_REQUEST_ID = {
    "X-Request-Id": {
        "required": True,
        "description": "The request's id, in the server's log too.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    }
}
# Python's $ also matches before a last newline, JSON Schema's does not: the look-ahead makes both mean the end.
_PRINTABLE = r"^[^\u0000-\u001f\u007f]+(?!\n)$"
_ETAG = {"ETag": {"description": "The version that is shown.", "schema": {"type": "string"}}}
_TAGS = {"type": "string", "pattern": preconditions.TAGS}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The client's own word for this request. Sent again by the same user, it is answered as it was, for "
    "a day at least, and not done again. An answer that is no success is not kept.",
    "schema": {"type": "string", "pattern": idempotency_keys.PATTERN},
}
_REPLAYED = {
    "Idempotency-Replayed": {
        "description": "The request was done before, and this is what was answered.",
        "schema": {"const": "true"},
    }
}
_IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "ETags, or *: it is done only if this is one of those versions, else the answer is 412.",
    "schema": _TAGS,
}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "ETags, or *: if it is still one of them, the answer is 304.",
    "schema": _TAGS,
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
# draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651).
_LIMITS = {
    "RateLimit-Policy": {
        "description": "The limits that hold for an authenticated caller: q requests in w seconds, by key and by user. "
        'Example: `"key";q=600;w=60, "user";q=60000;w=60`.',
        "schema": {"type": "string", "pattern": '^"[a-z]+";q=\\d+;w=60(, "[a-z]+";q=\\d+;w=60)*$'},
    },
    "RateLimit": {
        "description": "How they stand: r requests are left, and t seconds until they are all there again. "
        'Example: `"key";r=599;t=31, "user";r=59999;t=31`.',
        "schema": {"type": "string", "pattern": '^"[a-z]+";r=\\d+;t=\\d+(, "[a-z]+";r=\\d+;t=\\d+)*$'},
    },
}
_LOCATION = {
    "Location": {"required": True, "description": "The address of what was created.", "schema": {"type": "string"}}
}


def build(routes: Sequence[Route]) -> bytes:
    """Give the document as JSON.

    Raises TypeError, naming the route, where a handler is not documented or annotated, where an annotation has no JSON
    form, and where two routes would have one operationId.
    """
    operations = [(route, signature(route)) for route in routes]
    schemas, components = _schemas(operations)
    paths: dict[str, Schema] = {}
    taken: set[str] = set()
    for route, operation in operations:
        described = _operation(route, operation, schemas)
        if described["operationId"] in taken:
            raise TypeError(f"{route.method} {route.path}: another route is {described['operationId']} already")
        taken.add(described["operationId"])
        paths.setdefault(route.path, {})[route.method.lower()] = described
    statuses = sorted({code.status for code in CODES.values()})
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Crafely", "version": crafely.__version__, "description": _DESCRIPTION},
            "servers": [{"url": "/"}],
            "tags": _tags(operations),
            "paths": paths,
            "components": {
                "schemas": components,
                "responses": {f"Problem{status}": _problem(status) for status in statuses},
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An API key, or a session token of the web application.",
                    },
                    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
                },
            },
            # Every code that a problem can have; the documentation's page has a section for each.
            "x-problems": [
                {"code": name, "status": code.status, "title": code.title, "explanation": code.explanation}
                for name, code in CODES.items()
            ],
        }
    )


def _schemas(operations: list[tuple[Route, Operation]]) -> tuple[dict[int, Schema], dict[str, Any]]:
    """Make a schema for each body and answer (by the annotation's id()), and the components they refer to."""
    kinds: list[Any] = [ProblemDetails]
    for route, operation in operations:
        for kind in (operation.body, operation.answer):
            try:
                msgspec.json.schema_components([kind])
            except TypeError as error:
                raise TypeError(f"{route.method} {route.path}: {kind} has no JSON form: {error}") from None
            kinds.append(kind)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    components = dict(components)
    for struct in _structs(kinds):
        _say_more(struct, components)
    return {id(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}, components


def _structs(kinds: Sequence[Any]) -> Iterator[inspect.StructType]:
    """Find every Struct within some annotations, each once."""
    # By identity, for every Page[…] has the class Page; one call of multi_type_info makes one object of a type.
    seen: set[int] = set()
    waiting: list[Any] = list(inspect.multi_type_info(kinds))
    while waiting:
        match waiting.pop():
            case inspect.StructType() as struct if id(struct) not in seen:
                seen.add(id(struct))
                waiting += [field.type for field in struct.fields]
                yield struct
            case inspect.UnionType(types=types):
                waiting += types
            case inspect.Metadata(type=inner):
                waiting.append(inner)
            case inspect.ListType(item_type=item) | inspect.DictType(value_type=item):
                waiting.append(item)


def _say_more(struct: inspect.StructType, components: dict[str, Any]) -> None:
    """Say what msgspec leaves out: date-time without a promised offset, and that a decimal may be sent as a number."""
    properties: Schema = next(
        (one["properties"] for one in components.values() if one["title"] == struct.cls.__name__), {}
    )
    for field in struct.fields:
        types = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for part in properties.get(field.encode_name, {}).get("anyOf", [properties.get(field.encode_name, {})]):
            if part.get("type") != "string":
                continue
            if any(isinstance(type_, inspect.DateTimeType) for type_ in types):
                part["format"] = "date-time"
            elif any(isinstance(type_, inspect.DecimalType) for type_ in types) and issubclass(struct.cls, Body):
                part["type"] = ["string", "number"]


def _tags(operations: list[tuple[Route, Operation]]) -> list[Schema]:
    modules = {operation.noun: route.handler.__module__ for route, operation in operations}
    return [
        {"name": _kebab(noun), "description": (sys.modules[module].__doc__ or "").partition("\n")[0]}
        for noun, module in modules.items()
    ]


def _kebab(noun: str) -> str:
    return noun.replace("_", "-")


def _operation(route: Route, operation: Operation, schemas: dict[int, Schema]) -> Schema:
    described: Schema = {
        "operationId": f"{operation.noun}.{operation.name}",
        "tags": [_kebab(operation.noun)],
        "summary": operation.summary,
    }
    if text := _permission(route):
        described["x-permission"] = route.permission
    description = "\n\n".join(part for part in (operation.description, text) if part)
    if description:
        described["description"] = description
    described["security"] = [] if route.permission is None else [{"bearer": []}, {"apiKey": []}]
    parameters = [*map(_path_parameter, operation.parameters), *_query_parameters(operation)]
    if route.once:
        parameters.append(_IDEMPOTENCY_KEY)
    if operation.if_match:
        parameters.append(_IF_MATCH)
    if _may_be_known(route, operation):
        parameters.append(_IF_NONE_MATCH)
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": schemas[id(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    described["responses"] = _responses(route, operation, schemas)
    return described


def _permission(route: Route) -> str:
    return f"Takes the permission `{route.permission}`." if route.permission else ""


def _may_be_known(route: Route, operation: Operation) -> bool:
    """Whether a client may ask for an answer only if it is another one than it has."""
    return operation.tagged and route.method == "GET"


def _path_parameter(name: str) -> Schema:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_PARAMETER, "pattern": _PRINTABLE}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(operation: Operation) -> Iterator[Schema]:
    if operation.query is None:
        return
    _, components = msgspec.json.schema_components([operation.query], ref_template=_REF)
    schema = components[operation.query.__name__]
    for name, field in schema["properties"].items():
        parameter: Schema = {"name": name, "in": "query", "required": name in schema["required"]}
        plain = {key: value for key, value in _without_null(field).items() if key != "default" or value is not None}
        if text := plain.pop("description", None):
            parameter["description"] = text
        parameter["schema"] = plain
        if plain.get("type") == "array":
            # One parameter, values separated by commas.
            parameter |= {"style": "form", "explode": False}
        yield parameter


def _without_null(field: Schema) -> Schema:
    """Give a parameter's schema without null, which a query string cannot say."""
    options = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
    if len(options) != 1:
        return field
    return {**{key: value for key, value in field.items() if key != "anyOf"}, **options[0]}


def _responses(route: Route, operation: Operation, schemas: dict[int, Schema]) -> Schema:
    headers = {**_REQUEST_ID, **(_LIMITS if route.permission is not None else {})}
    if operation.answer in {None, type(None)}:
        success: Schema = {"description": "Done; there is nothing to say.", "headers": headers}
        responses: Schema = {"204": success}
    else:
        # Bytes are text, or (this document itself) some JSON object.
        plain = {"type": "object" if route.media_type == "application/json" else "string"}
        schema = plain if operation.answer is bytes else schemas[id(operation.answer)]
        responses = {
            str(route.status): {
                "description": "Created." if route.status == 201 else "The answer.",
                "headers": {
                    **headers,
                    **(_LOCATION if _has_address(route, operation) else {}),
                    **(_ETAG if operation.tagged else {}),
                    **(_REPLAYED if route.once else {}),
                },
                "content": {route.media_type: {"schema": schema}},
            }
        }
    if _may_be_known(route, operation):
        responses["304"] = {"description": "The client has it already.", "headers": {**_REQUEST_ID, **_ETAG}}
    for status in _problem_statuses(route, operation):
        responses[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    return responses


def _has_address(route: Route, operation: Operation) -> bool:
    """Whether one thing is created, which then has an address; usage comes in batches and has none."""
    return route.status == 201 and "id" in getattr(operation.answer, "__struct_fields__", ())


def _problem_statuses(route: Route, operation: Operation) -> list[int]:
    # Any request can be broken HTTP, carry its credentials twice, or arrive too slowly.
    statuses = {400, 408, 422, 500, 503}
    if route.permission is not None:
        statuses |= {401, 429}
    if route.permission not in {None, AUTHENTICATED}:
        statuses.add(403)
    if operation.parameters:
        statuses.add(404)
    if operation.body is not None:
        statuses |= {413, 415, 417}
    if route.once:
        # An answer may be too large to be kept.
        statuses.add(413)
    if route.method in {"POST", "PATCH"}:
        statuses.add(409)
    if operation.if_match:
        statuses.add(412)
    return sorted(statuses)


def _problem(status: int) -> Schema:
    codes = {name: code for name, code in CODES.items() if code.status == status}
    return {
        "description": " ".join(f"`{name}`: {code.explanation}" for name, code in codes.items()),
        "headers": {
            **_REQUEST_ID,
            **(_LIMITS if status != 401 else {}),
            **(_RETRY_AFTER if status in {429, 503} else {}),
        },
        "content": {
            CONTENT_TYPE: {
                "schema": {"$ref": _REF.format(name="ProblemDetails")},
                "examples": {name: {"value": msgspec.Raw(Problem(name).body(_EXAMPLE_ID))} for name in codes},
            }
        },
    }


_EXAMPLE_ID = "5f0c9e7ad2b84b3fa2f5c1f0d9c6a7e1"
