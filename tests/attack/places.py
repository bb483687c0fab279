"""Every place of the API that takes a text, from its description: so that no new route is left out."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.api.conftest import description

# What the rest of a request holds, while one text in it is an attack. A name that is not here gets what its type says.
SAMPLES: dict[str, Any] = {"permissions": [], "currency": "usd", "expiresAt": None, "endDate": None, "startDate": None}
# Texts that fit the patterns that there are.
FITTING = ("usd", "a:b", "0", '"0"', "x" * 16)


class Place(NamedTuple):
    """Where a text goes: the operation, path, query, header or body, and a name or the steps into the body."""

    method: str
    path: str
    kind: str
    name: str
    steps: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.kind} {self.name or '/' + '/'.join(map(str, self.steps))}"


def places() -> list[Place]:
    """All of them; where an object takes names of the client's own, the name is one, too."""
    found = []
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            parameters = operation.get("parameters", [])
            found += [Place(method.upper(), path, parameter["in"], parameter["name"]) for parameter in parameters]
            for kind in _bodies(operation):
                found += [Place(method.upper(), path, "body", "", steps) for steps in _texts(kind, ())]
            found.append(Place(method.upper(), path, "header", "X-Request-Id"))
    return found


def request(place: Place, text: str, **known: Any) -> tuple[str, dict[str, Any]]:
    """The path and aiohttp's options of a request with a text at a place.

    ``known`` has what other fields of that name hold: ids that are there.
    """
    operation = description()["paths"][place.path][place.method.lower()]
    path = place.path
    query, headers = {}, {}
    for parameter in operation.get("parameters", []):
        name, kind, chosen = parameter["name"], parameter["in"], parameter["name"] == place.name
        value = text if chosen and kind == place.kind else known.get(name)
        if kind == "path":
            path = path.replace(f"{{{name}}}", quote(value or "nothing", safe=""))
        elif kind == "query" and chosen:
            query[name] = text
        elif kind == "header" and chosen:
            headers[name] = text
    if place.kind == "header":
        headers[place.name] = text
    options: dict[str, Any] = {"headers": headers}
    bodies = list(_bodies(operation))
    if bodies:
        first = place.steps[:1] == (0,)
        body = next(sample(one, known) for one in bodies if (one.get("type") == "array") == first)
        if place.kind == "body":
            body = put(body, place.steps, text)
        # As it is: a payload may hold half of a pair, which is a text to JSON.
        options["data"] = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    pairs = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    return path + (f"?{pairs}" if pairs else ""), options


def _bodies(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    content = operation.get("requestBody", {}).get("content", {})
    for media_type in content.values():
        yield from options(media_type["schema"])


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = description()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def options(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every kind of value that a schema takes."""
    for one in resolved(schema).get("anyOf", [schema]):
        yield resolved(one)


def kinds(schema: dict[str, Any]) -> set[str]:
    found = schema.get("type", [])
    return {found} if isinstance(found, str) else set(found)


def _texts(schema: dict[str, Any], steps: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    for one in options(schema):
        if "string" in kinds(one) or "enum" in one:
            yield steps
        if "array" in kinds(one):
            yield from _texts(one.get("items", {"type": "string"}), (*steps, 0))
        if "object" in kinds(one):
            for name, member in one.get("properties", {}).items():
                yield from _texts(member, (*steps, name))
            if one.get("additionalProperties") is not False:
                yield (*steps, "name")
            # Of the object itself: a name that it does not know, or one of the client's own.
            yield (*steps, NAME)


# The step that stands for the name of a member, not for its value.
NAME = "{}"


def sample(schema: dict[str, Any], known: dict[str, Any]) -> Any:
    """Something small that a schema takes."""
    one = next(options(schema))
    if "enum" in one:
        return one["enum"][0]
    if "object" in kinds(one):
        required = one.get("required", [])
        return {name: known.get(name, SAMPLES.get(name, sample(one["properties"][name], known))) for name in required}
    if "array" in kinds(one):
        return [sample(one["items"], known)]
    if "string" in kinds(one):
        if one.get("format") in {"decimal", "date-time"}:
            return "1" if one["format"] == "decimal" else "2999-01-01T00:00:00Z"
        return next(text for text in FITTING if re.search(one.get("pattern", ""), text))
    return {"integer": 1, "number": 1, "boolean": True, "null": None}[next(iter(kinds(one)))]


def put(body: Any, steps: tuple[str | int, ...], value: Any) -> Any:
    """The body with a value at a place; what leads there is made where it is missing."""
    if not steps:
        return value
    step, *rest = steps
    if step == NAME:
        return {**(body if isinstance(body, dict) else {}), value: "x"}
    if isinstance(step, int):
        return [put(body[0] if isinstance(body, list) and body else None, tuple(rest), value)]
    made = deepcopy(body) if isinstance(body, dict) else {}
    made[step] = put(made.get(step), tuple(rest), value)
    return made
