"""Who calls a statement, as read from the source."""

import ast
import re
from pathlib import Path

import pytest

from crafely.api import ROUTES
from crafely.cli.callers import PACKAGE, Place, _walk, uses
from crafely.db import query
from crafely.store import __all__ as nouns


def callers(name: str) -> set[str]:
    return {f"{caller.kind}: {caller.name}" for caller in uses()[name].callers}


def line(place: Place) -> str:
    return (PACKAGE.parent / place.path).read_text().splitlines()[place.line - 1].strip()


def test_every_statement_is_found_and_has_a_caller() -> None:
    assert nouns
    assert uses().keys() == query.statements.keys()
    assert [name for name, use in uses().items() if not use.callers or not use.sites] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # A handler calls it.
        ("threads/list_for_agent", {"route: GET /v1/threads"}),
        ("threads/get", {f"route: {method} /v1/threads/{{id}}" for method in ("GET", "PATCH", "DELETE")}),
        # Through an attribute of the services, and in a transaction.
        ("usage/record", {"route: POST /v1/usage", "route: POST /v1/api-keys"}),
        # Through the verifier, which is given the method.
        ("api_keys/rehash", {"request: every request with credentials", "route: POST /v1/api-keys/verify"}),
        # A command with actions, and one that makes the first key.
        ("api_keys/create", {"route: POST /v1/api-keys", "command: crafely keys create", "command: crafely serve"}),
        ("usage/months", {"command: crafely usage reconcile"}),
        # A command that shares what it shows with the API.
        (
            "monitor/locks",
            {
                "route: GET /v1/monitor/activity",
                "route: GET /v1/monitor/alerts",
                "command: crafely monitor",
                "job: observe_database",
            },
        ),
        # One whose actions stand in several modules, and one with a kind.
        ("encryption_keys/retire", {"command: crafely keys reencrypt"}),
        ("usage/is_dropped", {"route: GET /v1/usage/stats"}),
        # Housekeeping.
        ("api_keys/touch", {"job: flush_touches", "command: crafely bench capacity"}),
        ("user_subscriptions/expire", {"job: expire_subscriptions"}),
    ],
)
def test_what_leads_to_a_statement(name: str, expected: set[str]) -> None:
    assert callers(name) == expected


def test_what_is_only_measured_is_not_called() -> None:
    found = callers("api_keys/lookup")
    assert "request: every request with credentials" in found
    assert {"route: GET /metrics", "job: observe"} & found == set()


def test_what_only_names_a_type_is_no_reference() -> None:
    tree = ast.parse("@wrap\ndef f(a: Services = DEFAULT) -> Answer:\n    b: Services = call(a)\n    measure(kept)")
    names = {
        node.id for node in _walk(tree, lambda call: ast.unparse(call.func) == "measure") if isinstance(node, ast.Name)
    }
    assert names == {"DEFAULT", "call", "a", "b"}


def test_every_place_is_the_line_that_it_says() -> None:
    for name, use in uses().items():
        noun, function = name.split("/")
        assert line(use.signature.place).startswith(f"async def {function}(")
        assert use.signature.text.startswith(f"async def {function}(")
        assert re.search(r"-> [\w\[\] |]+$", use.signature.text)
        for site in use.sites:
            assert re.search(rf"\b{noun}\.{function}\b", line(site.place)), site
            assert site.function.rpartition(".")[2] in (PACKAGE.parent / site.place.path).read_text()
        for caller in use.callers:
            if caller.kind == "route":
                method, path = caller.name.split(" ")
                assert line(caller.place).startswith(f'Route("{method}", "{path}", ')


def test_every_route_of_the_table_is_read() -> None:
    routes = {caller.name for use in uses().values() for caller in use.callers if caller.kind == "route"}
    # Those that ask the database nothing of their own. (The metrics show the standby, and who holds one may ask how far
    # the primary's log is.)
    quiet = {"GET /v1/me", "GET /healthz", "GET /openapi.json", "GET /docs"}
    assert {f"{route.method} {route.path}" for route in ROUTES} - routes == quiet


def test_the_source_is_that_of_the_package() -> None:
    assert Path(query.__file__).is_relative_to(PACKAGE)
