"""From a method and a path to the one who answers.

A path that is written out goes before one with a {parameter}, whatever the method, as OpenAPI has it. aiohttp's own
router takes several times as long, for it can do much more.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from aiohttp import web

from crafely.api.answer import Answer
from crafely.api.problems import Problem


class Endpoint(NamedTuple):
    """The one who answers: the path's template, and the function that takes the Call."""

    template: str
    serve: Callable[[Any], Awaitable[Answer]]


Methods = dict[str, Endpoint]


class _Node:
    """The place in the tree that some segments of a path lead to."""

    __slots__ = ("literals", "methods", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.methods: Methods = {}


class Router:
    """All endpoints, by path and method."""

    def __init__(self) -> None:
        # Paths without parameters, whole: most requests need one look and no more.
        self._whole: dict[str, Methods] = {}
        self._root = _Node()

    def add(self, method: str, path: str, serve: Callable[[Any], Awaitable[Answer]]) -> None:
        """Adds an endpoint; one for GET answers HEAD, too. Raises TypeError where there is one already."""
        node = self._root
        for part in path.split("/"):
            if part.startswith("{"):
                node.parameter = node = node.parameter or _Node()
            else:
                node = node.literals.setdefault(part, _Node())
        if method in node.methods:
            raise TypeError(f"{method} {path}: another route is {method} {node.methods[method].template} already")
        for name in ("GET", "HEAD") if method == "GET" else (method,):
            node.methods[name] = Endpoint(path, serve)
        if "{" not in path:
            self._whole[path] = node.methods

    def find(self, request: web.BaseRequest) -> tuple[Endpoint, tuple[str, ...]]:
        """Who answers a request, and the values of its path's parameters in their order.

        Raises Problem: 404, or 405 with the methods that the path has.
        """
        method = request.method
        methods = self._whole.get(request.raw_path)
        if methods is not None and (endpoint := methods.get(method)) is not None:
            return endpoint, ()
        methods, values = next(self._matches(_segments(request)), ({}, ()))
        if endpoint := methods.get(method):
            return endpoint, values
        if not methods:
            raise Problem("not_found")
        names = ", ".join(sorted(methods))
        raise Problem("method_not_allowed", f"This address answers {names}.", headers={"Allow": names})

    def _matches(self, segments: list[str]) -> Iterator[tuple[Methods, tuple[str, ...]]]:
        """Everything in the tree that a path fits, what is written out first."""
        waiting: list[tuple[_Node, int, tuple[str, ...]]] = [(self._root, 0, ())]
        while waiting:
            node, index, values = waiting.pop()
            if index == len(segments):
                if node.methods:
                    yield node.methods, values
                continue
            segment = segments[index]
            if node.parameter is not None and segment:
                waiting.append((node.parameter, index + 1, (*values, segment)))
            if (literal := node.literals.get(segment)) is not None:
                waiting.append((literal, index + 1, values))


def _segments(request: web.BaseRequest) -> list[str]:
    """What stands between the slashes of a path, percent-decoded; an encoded slash is none of them."""
    path = request.rel_url.raw_path
    if "%" not in path:
        return path.split("/")
    # path_safe leaves the two that are replaced here as they stand, and what is not UTF-8.
    return [segment.replace("%2F", "/").replace("%25", "%") for segment in request.rel_url.path_safe.split("/")]
