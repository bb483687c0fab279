"""The description of a small route table, and the page that shows it."""

import json
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import UNSET, Meta, UnsetType

from crafely.api import openapi
from crafely.api.problems import CODES
from crafely.api.wire import AUTHENTICATED, Body, Call, FreeObject, ListQuery, Page, Route, Timestamp


class Change(Body, kw_only=True, frozen=True):
    """What to change."""

    name: Annotated[str, Meta(max_length=255)] | UnsetType = UNSET
    tools: FreeObject | UnsetType = UNSET
    price: Decimal | None | UnsetType = UNSET
    until: Timestamp | None | UnsetType = UNSET


class Part(msgspec.Struct, frozen=True, rename="camel"):
    made_at: datetime | None


class Thing(msgspec.Struct, frozen=True, rename="camel"):
    """A thing."""

    id: str
    created_at: datetime
    price: Decimal
    parts: list[Part]
    free: msgspec.Raw | None


class Filter(ListQuery, kw_only=True, frozen=True):
    kind: Annotated[Literal["a", "b"], Meta(description="Which kind.")] | None = None
    group_by: list[Literal["a", "b"]] | None = None
    since: Timestamp | None = None


async def list_(call: Call, query: Filter) -> Page[Thing]:
    """List things.

    Newest first.
    """
    raise NotImplementedError


async def parts(call: Call, query: ListQuery) -> Page[Part]:
    """List parts."""
    raise NotImplementedError


async def update(call: Call, id: str, body: Change) -> Thing:
    """Change a thing."""
    raise NotImplementedError


async def delete(call: Call, id: str) -> None:
    """Delete a thing."""


async def create(call: Call, body: Annotated[list[Change], Meta(max_length=9)] | Change) -> list[Thing]:
    """Create things."""
    raise NotImplementedError


async def page(call: Call) -> bytes:
    """Show a page."""
    raise NotImplementedError


async def odd(call: Call) -> complex:
    """Give what JSON does not know."""
    raise NotImplementedError


ROUTES = [
    Route("GET", "/v1/things", list_, "things:read"),
    Route("POST", "/v1/things", create, "things:write", 201),
    Route("PATCH", "/v1/things/{id}", update, "things:write"),
    Route("DELETE", "/v1/things/{id}", delete, "things:write", 204),
    Route("GET", "/v1/parts", parts, AUTHENTICATED),
    Route("GET", "/page", page, None, media_type="text/html"),
]
TAG = __name__.rpartition(".")[2]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(openapi.build(ROUTES))  # type: ignore[no-any-return]  # a JSON document


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = [node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)]
    assert len(references) > 10
    for reference in references:
        at: Any = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


def test_every_schema_is_one_of_2020_12(document: dict[str, Any]) -> None:
    schemas = [*document["components"]["schemas"].values()]
    schemas += [node["schema"] for node in nodes(document) if "schema" in node]
    assert len(schemas) > 20
    for schema in schemas:
        Draft202012Validator.check_schema(schema)


def test_the_frame(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert [tag["name"] for tag in document["tags"]] == [TAG.replace("_", "-")]
    assert {one["code"] for one in document["x-problems"]} == set(CODES)
    assert set(document["paths"]) == {"/v1/things", "/v1/things/{id}", "/v1/parts", "/page"}


def test_an_operation_reads_as_its_handler_does(document: dict[str, Any]) -> None:
    operation = document["paths"]["/v1/things"]["get"]
    assert operation["operationId"] == f"{TAG}.list"
    assert operation["summary"] == "List things."
    assert operation["description"] == "Newest first.\n\nTakes the permission `things:read`."
    assert operation["security"] == [{"bearer": []}, {"apiKey": []}]
    assert set(operation["responses"]) == {"200", "400", "401", "403", "408", "422", "429", "500", "503"}


def test_query_parameters_have_their_limits(document: dict[str, Any]) -> None:
    parameters = {one["name"]: one for one in document["paths"]["/v1/things"]["get"]["parameters"]}
    assert list(parameters) == ["take", "cursor", "skip", "kind", "groupBy", "since"]
    assert parameters["take"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
    assert parameters["cursor"]["schema"] == {"type": "string", "maxLength": 512}
    assert parameters["kind"] == {
        "name": "kind",
        "in": "query",
        "required": False,
        "description": "Which kind.",
        "schema": {"enum": ["a", "b"]},
    }
    assert (parameters["groupBy"]["style"], parameters["groupBy"]["explode"]) == ("form", False)
    assert parameters["since"]["schema"]["format"] == "date-time"


def test_bodies_of_patch_require_nothing_and_refuse_the_unknown(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/things/{id}"]["patch"]["requestBody"]
    assert body["required"] is True
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Change"}
    schema = document["components"]["schemas"]["Change"]
    assert (schema["required"], schema["additionalProperties"]) == ([], False)
    assert schema["properties"]["tools"] == {"type": ["object", "null"]}
    validator = Draft202012Validator({**schema, "components": document["components"]})
    assert validator.is_valid({"tools": {"a": 1}, "until": None})
    assert not validator.is_valid({"tools": []})
    assert not validator.is_valid({"name": None})


def test_answers(document: dict[str, Any]) -> None:
    paths = document["paths"]
    assert "content" not in paths["/v1/things/{id}"]["delete"]["responses"]["204"]
    for response in paths["/v1/things"]["post"]["responses"].values():
        if "$ref" not in response:
            assert response["headers"]["X-Request-Id"]["required"] is True
    # A list of things has no address.
    assert "Location" not in paths["/v1/things"]["post"]["responses"]["201"]["headers"]
    assert paths["/page"]["get"]["responses"]["200"]["content"] == {"text/html": {"schema": {"type": "string"}}}
    assert paths["/page"]["get"]["security"] == []
    assert {"400", "404", "409", "413", "415"} < set(paths["/v1/things/{id}"]["patch"]["responses"])
    assert "403" not in paths["/v1/parts"]["get"]["responses"]


def test_times_say_that_they_are_times_wherever_they_stand(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Thing"]["properties"]["createdAt"] == {"type": "string", "format": "date-time"}
    assert schemas["Part"]["properties"]["madeAt"]["anyOf"][0] == {"type": "string", "format": "date-time"}
    assert schemas["Thing"]["properties"]["id"] == {"type": "string"}


def test_a_decimal_is_answered_as_a_string_and_taken_as_a_number_too(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Thing"]["properties"]["price"] == {"type": "string", "format": "decimal"}
    sent = {"type": ["string", "number"], "format": "decimal"}
    assert schemas["Change"]["properties"]["price"]["anyOf"] == [sent, {"type": "null"}]


def test_a_parameter_of_a_path_says_what_it_may_hold(document: dict[str, Any]) -> None:
    (parameter,) = document["paths"]["/v1/things/{id}"]["patch"]["parameters"]
    validator = Draft202012Validator(parameter["schema"])
    assert [text for text in ("", "a\0", "a\n", "\x7f", "x" * 256, 1) if validator.is_valid(text)] == []
    assert [text for text in ("a", "é ", "x" * 255, "a/b\\") if not validator.is_valid(text)] == []


def test_problem_examples_are_problems(document: dict[str, Any]) -> None:
    components = document["components"]
    validator = Draft202012Validator({**components["schemas"]["ProblemDetails"], "components": components})
    shown = 0
    for response in components["responses"].values():
        for example in response["content"]["application/problem+json"]["examples"].values():
            validator.validate(example["value"])
            shown += 1
    assert shown == len(CODES)


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ([Route("GET", "/odd", odd, None)], "GET /odd: .*complex.* has no JSON form"),
        ([*ROUTES, Route("GET", "/again", page, None)], "GET /again: another route is .*page"),
    ],
)
def test_what_cannot_be_described_is_refused_at_start(routes: list[Route], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        openapi.build(routes)
