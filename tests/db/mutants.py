"""Small wrong changes, made for a moment: to a copy of the SQL files, to signatures, to a database."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType

import msgspec
import psycopg
import pytest

from crafely.db import contract, plans, query
from crafely.db.contract import Finding, facts, grants, tree
from crafely.db.header import SqlFileError
from crafely.store import __all__ as nouns  # importing the store registers its statements

ROOT = Path(__file__).parents[2]


class Mutant(msgspec.Struct, frozen=True):
    """A change, and what must be found.

    ``where`` is a file of ``sql/`` («threads/get»), a module of the store («threads.py»), another file in ``sql/``
    («grants.txt»), or «schema»; then ``new`` is SQL that the database is given, and ``found`` says where it shows.
    """

    where: str
    old: str
    new: str
    # The rule; «header» for what is refused when the statement is loaded.
    rule: str
    # On the line where this text first stands in the changed file. "": the first line.
    at: str
    # A part of what is said.
    says: str
    # The file, where it is not the changed one; and the statement that is checked, "*" for all, "grants" for those.
    found: str = ""
    check: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.old or self.new} -> {self.new}"[:90]


class Copy:
    """A copy of the SQL files, and the statements that go with them."""

    def __init__(self, folder: Path, connection: psycopg.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self._facts = facts.read(connection)
        self._functions: dict[str, Callable[..., object]] = {}
        shutil.copytree(query.folder(), folder)
        for name in query.statements:
            noun, function = name.split("/")
            assert noun in nouns
            self._functions[name] = getattr(sys.modules[f"crafely.store.{noun}"], function).__wrapped__
        self.statements = {
            name: msgspec.structs.replace(statement, path=folder / f"{name}.sql")
            for name, statement in query.statements.items()
        }

    @contextmanager
    def use(self) -> Iterator[None]:
        """The copy is what is checked."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(query, "folder", lambda: self.folder)
            patch.setattr(query, "statements", dict(self.statements))
            yield

    def findings(self, changes: Mapping[str, str], schema: str = "", only: str | None = None) -> list[Finding]:
        """What is found with other texts for some files (as Mutant.where names them), and a changed schema."""
        kept = {name: (self.folder / self._file(name)).read_bytes() for name in changes if not name.endswith(".py")}
        with self.use(), pytest.MonkeyPatch.context() as patch, self._connection.transaction(force_rollback=True):
            if not schema:
                patch.setattr(facts, "read", lambda _: self._facts)  # which takes longer than a statement
            try:
                for name, text in changes.items():
                    self._change(name, text)
                if schema:
                    self._connection.execute(schema.encode())
                if only == "grants":
                    return list(grants.grants(grants.snapshot(self._connection), self.needs))
                return contract.check(self._connection, only)
            except SqlFileError as error:
                return [Finding(f"sql/{error.path.relative_to(self.folder)}", error.line, "header", error.problem)]
            finally:
                for name, content in kept.items():
                    (self.folder / self._file(name)).write_bytes(content)

    @cached_property
    def needs(self) -> grants.Needs:
        """What the statements need, as they are."""
        needs = grants.Needs(self._facts)
        for statement in self.statements.values():
            with plans.as_role(self._connection, statement.header.roles[0]):
                described = plans.prepare(self._connection, statement.text)
            with self._connection.transaction(force_rollback=True):
                read = tree.read(self._connection, described, statement.text)
            for role in statement.header.roles:
                needs.add(role, read)
        return needs

    def text(self, name: str) -> str:
        """A file's text as it is."""
        place = ROOT / "crafely" / "store" / name if name.endswith(".py") else self.folder / self._file(name)
        return place.read_text()

    def _file(self, name: str) -> str:
        return name if "." in name else f"{name}.sql"

    def _change(self, name: str, text: str) -> None:
        if name.endswith(".py"):
            self._declare(name.removesuffix(".py"), text)
            return
        (self.folder / self._file(name)).write_text(text)
        if name in self._functions:
            query.statements[name] = query.load(self._functions[name])

    def _declare(self, noun: str, source: str) -> None:
        for name in [name for name in query.statements if name.startswith(f"{noun}/")]:
            del query.statements[name]
        module = ModuleType(f"crafely.store.{noun}")
        code = compile(source, str(ROOT / "crafely" / "store" / f"{noun}.py"), "exec")
        exec(code, module.__dict__)  # noqa: S102 - a module of the store with one line changed


def caught(copy: Copy, mutant: Mutant) -> list[Finding]:
    """What is found for a mutant, of which at least one finding is the one that must be."""
    if mutant.where == "schema":
        text = copy.text(mutant.found)
        found = copy.findings({}, mutant.new, None if mutant.check == "*" else mutant.check or mutant.found)
    else:
        before = copy.text(mutant.where)
        assert mutant.old in before
        text = before.replace(mutant.old, mutant.new, 1)
        only = mutant.check or (mutant.where if "." not in mutant.where else "grants")
        found = copy.findings({mutant.where: text}, only=None if only == "*" else only)
        text = copy.text(mutant.found) if mutant.found else text
    place = mutant.found or mutant.where
    path = f"crafely/store/{place}" if place.endswith(".py") else f"sql/{place}" if "." in place else f"sql/{place}.sql"
    assert mutant.at in text, mutant.at
    line = text.count("\n", 0, text.index(mutant.at)) + 1
    wanted = [f for f in found if (f.path, f.line, f.rule) == (path, line, mutant.rule) and mutant.says in f.problem]
    assert wanted, f"wanted {path}:{line}: {mutant.rule}: {mutant.says}, found:\n" + "\n".join(map(str, found))
    return found
