"""Who runs a statement: read from the source of this package, so that it is true of the release that answers.

From each route, command and housekeeping job the references are followed down to the store: through imports, ``self``,
attributes that a class sets, and by the house's naming (what is called ``services`` is a ``Services``). Nothing is
imported or run. Where Python could do something cleverer this would not see it, so ``tests/cli/test_callers.py`` holds
that every statement has a caller.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

PACKAGE = Path(__file__).parents[1]
_STORE = "crafely.store."
_API = "crafely.api"
# What every request goes through before its handler.
_REQUEST = f"{_API}.wire.bind"
_HOUSEKEEPING = f"{_API}.housekeeping.running"
# Where a command that serves begins to do so.
_SERVING = (f"{_API}.server", f"{_API}.workers")
# What is handed to it is measured, not run.
_MEASURING = f"{_API}.telemetry"

Kind = Literal["route", "request", "command", "job"]


class Place(msgspec.Struct, frozen=True, order=True):
    """A line of this package, as ``crafely/api/threads.py:84``."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


class Site(msgspec.Struct, frozen=True, order=True):
    """Where a function of the store is called, and from which function."""

    place: Place
    function: str


class Caller(msgspec.Struct, frozen=True):
    """What makes a statement run: a route, every request that must prove who it is, a command, or a housekeeping job.

    ``name`` is ``GET /v1/threads``, ``crafely keys list`` or ``expire_subscriptions``.
    """

    kind: Kind
    name: str
    place: Place


class Signature(msgspec.Struct, frozen=True):
    """The function that declares a statement: its source, without decorator and docstring."""

    text: str
    place: Place


class Use(msgspec.Struct, frozen=True):
    """One statement's signature, the calls of it, and what leads to them."""

    signature: Signature
    sites: tuple[Site, ...]
    callers: tuple[Caller, ...]


@cache
def uses() -> dict[str, Use]:
    """Every statement of the store by its name, such as ``threads/list_for_agent``."""
    source = _Source()
    roots = [*source.routes(), *source.commands(), *source.jobs()]
    roots.append((Caller("request", "every request with credentials", source.places[_REQUEST]), _REQUEST))
    reached = [(caller, source.reached(start, caller.kind)) for caller, start in roots]
    found = {}
    for target, signature in source.signatures.items():
        callers = {caller: None for caller, targets in reached if target in targets}
        name = target.removeprefix(_STORE).replace(".", "/")
        found[name] = Use(signature, source.sites(target), tuple(callers))
    return found


class _Module:
    """One module: its tree, and what the names in it stand for."""

    def __init__(self, path: Path) -> None:
        self.shown = str(path.relative_to(PACKAGE.parent))
        self.name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, str(path))
        self.names: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                self.names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.names[node.name] = f"{self.name}.{node.name}"


class _Source:
    """The whole package: what each function, method and attribute refers to, by dotted names."""

    def __init__(self) -> None:
        # What stands below the store calls none of it.
        paths = (path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "db")
        self.modules = [_Module(path) for path in paths]
        self.places: dict[str, Place] = {}
        self.signatures: dict[str, Signature] = {}
        # Of each dotted name, the lines on which it refers to others.
        self._references: dict[str, list[tuple[str, int]]] = {}
        # A class's simple name, and the dotted ones.
        self._classes: dict[str, list[str]] = {}
        for module in self.modules:
            for node in module.tree.body:
                if isinstance(node, ast.ClassDef):
                    self._classes.setdefault(node.name.lower(), []).append(f"{module.name}.{node.name}")
        for module in self.modules:
            for node in module.tree.body:
                if isinstance(node, ast.ClassDef):
                    self._read_class(module, node)
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    self._define(module, f"{module.name}.{node.name}", node, "", [node])

    def _define(self, module: _Module, name: str, at: ast.stmt, owner: str, nodes: Sequence[ast.AST]) -> None:
        self.places.setdefault(name, Place(module.shown, at.lineno))
        if name.startswith(_STORE) and isinstance(at, ast.AsyncFunctionDef):
            self.signatures[name] = _signature(module, at)
        found = [reference for node in nodes for reference in self._refer(module, owner, node)]
        self._references.setdefault(name, []).extend(found)

    def _read_class(self, module: _Module, node: ast.ClassDef) -> None:
        owner = f"{module.name}.{node.name}"
        self._references[owner] = []
        for method in node.body:
            if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            self._define(module, f"{owner}.{method.name}", method, owner, [method])
            # Whoever makes one may run any of its methods.
            self._references[owner].append((f"{owner}.{method.name}", method.lineno))
            for target, values in _assigned(method).items():
                if target.startswith("self."):
                    self._define(module, f"{owner}.{target[5:]}", method, owner, values)

    def _refer(self, module: _Module, owner: str, node: ast.AST) -> Iterator[tuple[str, int]]:
        """The dotted names that something refers to, annotations apart, with the line of each."""
        for part in _walk(node, lambda call: module.names.get(_chain(call.func)[0]) == _MEASURING):
            if not isinstance(part, ast.Name | ast.Attribute):
                continue
            chain = _chain(part)
            if chain[0] == "self" and owner and len(chain) > 1:
                yield f"{owner}.{chain[1]}", part.lineno
            elif base := module.names.get(chain[0]):
                yield ".".join([base, *chain[1:2]]), part.lineno
                yield base, part.lineno
            for thing, attribute in pairwise(chain):
                for kind in self._classes.get(thing.strip("_").lower(), ()):
                    yield f"{kind}.{attribute}", part.lineno

    def reached(self, start: str, kind: Kind) -> set[str]:
        """The functions of the store that something leads to.

        A command that serves leads to all of the API: its routes and jobs tell what that does, so there it ends.
        """
        seen, waiting = {start}, [start]
        while waiting:
            for name, _ in self._references.get(waiting.pop(), ()):
                if name not in seen and not (kind == "command" and name.startswith(_SERVING)):
                    seen.add(name)
                    waiting.append(name)
        return seen & self.signatures.keys()

    def sites(self, target: str) -> tuple[Site, ...]:
        """The lines that refer to a function, once each."""
        found = {
            Site(Place(self.places[name].path, line), name.removeprefix("crafely."))
            for name, references in self._references.items()
            for referred, line in references
            # An attribute is set in a method, which has the line, too.
            if referred == target and name in self.places
        }
        return tuple(sorted({site.place: site for site in sorted(found, reverse=True)}.values()))

    def routes(self) -> Iterator[tuple[Caller, str]]:
        """Each route of the table, and its handler."""
        module = self._module(_API)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Route":
                method, path, handler = node.args[:3]
                assert isinstance(method, ast.Constant)  # noqa: S101 - the route table is literal, and mypy should know
                assert isinstance(path, ast.Constant)  # noqa: S101 - as above
                place = Place(module.shown, node.lineno)
                name = next(name for name, _ in self._refer(module, "", handler))
                yield Caller("route", f"{method.value!s} {path.value!s}", place), name

    def jobs(self) -> Iterator[tuple[Caller, str]]:
        """What housekeeping runs: the methods that it names."""
        for name, line in self._references[_HOUSEKEEPING]:
            if name in self.places and name != _HOUSEKEEPING and name.startswith(f"{_API}.services."):
                place = Place(self.places[_HOUSEKEEPING].path, line)
                yield Caller("job", name.rpartition(".")[2], place), name

    def commands(self) -> Iterator[tuple[Caller, str]]:
        """Each command, and the functions that its parser is given to run."""
        adds = {
            module.name: (module, function)
            for module in self.modules
            if module.name.startswith("crafely.cli.")
            for function in module.tree.body
            if isinstance(function, ast.FunctionDef) and function.name == "add"
        }
        # A module may add its actions to the command of another one.
        within: dict[str, list[str]] = {}
        for module, function in adds.values():
            named = _words(function, [])
            for node in ast.walk(function):
                match node:
                    case ast.Call(
                        func=ast.Attribute(value=ast.Name(id=other), attr="add"), args=[ast.Name(id=owner)]
                    ) if owner in named:
                        within[module.names.get(other, "")] = named[owner]
                    case _:
                        pass
        for name, (module, function) in adds.items():
            for words, run in _commands(function, within.get(name, [])):
                caller = Caller("command", " ".join(["crafely", *words]), Place(module.shown, run.lineno))
                for referred, _ in self._refer(module, "", run):
                    yield caller, referred

    def _module(self, name: str) -> _Module:
        return next(module for module in self.modules if module.name == name)


def _walk(node: ast.AST, leave_out: Callable[[ast.Call], bool]) -> Iterator[ast.AST]:
    """A node and all below it, without annotations and decorators: they name types, and run nothing here."""
    yield node
    if isinstance(node, ast.Call) and leave_out(node):
        return
    for field, value in ast.iter_fields(node):
        if field not in {"annotation", "returns", "decorator_list"}:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _walk(child, leave_out)


def _chain(node: ast.expr) -> list[str]:
    """Of ``call.services.recorder``: its three names; what stands before a call in it has no name."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id if isinstance(node, ast.Name) else "", *names]


def _assigned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, list[ast.AST]]:
    """What a function assigns to ``name`` and ``self.name``: the expressions, with those of the locals in them."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            used = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            values = [node.value, *(value for name in sorted(used) for value in found.get(name, ()))]
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name | ast.Attribute):
                    found.setdefault(".".join(_chain(target)), []).extend(values)
    return found


def _words(add: ast.FunctionDef, before: list[str]) -> dict[str, list[str]]:
    """The words that lead to each parser of a module, by the name that it has there."""
    words = {add.args.args[0].arg: before}
    for node in ast.walk(add):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="add_parser"), args=[word, *_]),
            ) if isinstance(word, ast.Constant):
                words[name] = [*words.get(owner, []), str(word.value)]
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="add_subparsers")),
            ):
                words[name] = words.get(owner, [])
            case _:
                pass
    return words


def _commands(add: ast.FunctionDef, before: list[str]) -> Iterator[tuple[list[str], ast.expr]]:
    """The words of each command that a module adds, and what ``set_defaults`` gives it to run."""
    words = _words(add, before)
    for node in ast.walk(add):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="set_defaults"), keywords=given):
                for keyword in given:
                    yield words.get(owner, []), keyword.value
            case _:
                pass


def _signature(module: _Module, function: ast.AsyncFunctionDef) -> Signature:
    lines = module.text.splitlines()[function.lineno - 1 : function.body[0].lineno - 1]
    return Signature(
        text="\n".join(lines).rstrip(":"),
        place=Place(module.shown, function.lineno),
    )
