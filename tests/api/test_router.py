"""Which route a path leads to."""

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from crafely.api.answer import Answer
from crafely.api.problems import Problem
from crafely.api.router import Router
from crafely.api.wire import Call


async def serve(_: Call) -> Answer:
    raise AssertionError("nobody is served here")


@pytest.fixture
def router() -> Router:
    router = Router()
    for route in (
        "GET /a",
        "POST /a",
        "GET /a/{id}",
        "DELETE /a/{id}",
        "GET /a/current",
        "POST /a/{id}/end",
        "GET /a/{id}/{part}",
        "POST /a/current/{part}",
        "GET /",
    ):
        method, path = route.split()
        router.add(method, path, serve)
    return router


def find(router: Router, method: str, path: str) -> tuple[str, Any]:
    endpoint, values = router.find(make_mocked_request(method, path))
    return endpoint.template, values


@pytest.mark.parametrize(
    ("method", "path", "template", "values"),
    [
        ("GET", "/", "/", ()),
        ("GET", "/a", "/a", ()),
        ("HEAD", "/a", "/a", ()),
        ("GET", "/a?b=/a/current", "/a", ()),
        ("GET", "/a/1", "/a/{id}", ("1",)),
        ("HEAD", "/a/1", "/a/{id}", ("1",)),
        ("GET", "/a/current", "/a/current", ()),
        ("POST", "/a/current/x", "/a/current/{part}", ("x",)),
        ("POST", "/a/1/end", "/a/{id}/end", ("1",)),
        ("GET", "/%61/%C3%A9%20", "/a/{id}", ("é ",)),
        # An encoded slash or percent sign belongs to the value; what is no UTF-8 stays as it is.
        ("GET", "/a/x%2Fy", "/a/{id}", ("x/y",)),
        ("GET", "/a/x%2fy%252F", "/a/{id}", ("x/y%2F",)),
        ("GET", "/a/%FF", "/a/{id}", ("%FF",)),
        ("GET", "/a/{id}", "/a/{id}", ("{id}",)),
    ],
)
def test_found(router: Router, method: str, path: str, template: str, values: tuple[str, ...]) -> None:
    assert find(router, method, path) == (template, values)


@pytest.mark.parametrize("path", ["/b", "/a/", "/a//x", "/a/1/end/x", "//a", "/A", "/a" + "/" * 5000])
def test_not_found(router: Router, path: str) -> None:
    with pytest.raises(Problem) as caught:
        find(router, "GET", path)
    assert caught.value.code == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/a", "GET, HEAD, POST"),
        ("PUT", "/a/1", "DELETE, GET, HEAD"),
        # What is written out is one address, and not also the one of a thing with that id.
        ("PUT", "/a/current", "GET, HEAD"),
        ("DELETE", "/a/current", "GET, HEAD"),
        ("PUT", "/a/current/x", "POST"),
        ("GET", "/a/1/end", "POST"),
    ],
)
def test_not_allowed(router: Router, method: str, path: str, allow: str) -> None:
    with pytest.raises(Problem) as caught:
        find(router, method, path)
    assert (caught.value.code, caught.value.headers["Allow"]) == ("method_not_allowed", allow)


def test_two_routes_for_the_same_are_a_mistake(router: Router) -> None:
    for path in ("/a", "/a/{other}"):
        with pytest.raises(TypeError, match=f"GET {path}"):
            router.add("GET", path, serve)
