"""What is known of a statement without asking a database: its file, its signature, and who calls it."""

from types import UnionType
from typing import Any, get_args, get_origin

import msgspec

from crafely.cli.callers import Caller, Signature, Site, uses
from crafely.db import query
from crafely.db.header import read_header
from crafely.db.query import Statement
from crafely.store import __all__ as nouns  # importing the store registers its statements

__all__ = ["Column", "Entry", "Scan", "entries", "entry", "nouns"]


class Column(msgspec.Struct, frozen=True, rename="camel"):
    """A column that a statement gives, or a parameter that it takes, with its type in Python."""

    name: str
    type: str


class Scan(msgspec.Struct, frozen=True, rename="camel"):
    """A table that may be read from end to end, and why."""

    table: str
    because: str


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """One statement: what it says, what it promises, and where it is called from."""

    # "threads/list_for_agent"
    name: str
    path: str
    description: str
    # The statement itself, without the header.
    text: str
    # "many Thread"
    returns: str
    columns: tuple[Column, ...]
    parameters: tuple[Column, ...]
    roles: tuple[str, ...]
    uses: tuple[str, ...]
    scans: tuple[Scan, ...]
    # What the server cannot see: columns that are never null, and why there is one row.
    not_null: tuple[str, ...]
    one_row: str
    signature: Signature
    sites: tuple[Site, ...]
    callers: tuple[Caller, ...]

    @property
    def noun(self) -> str:
        """The table that it is about: the folder of its file."""
        return self.name.partition("/")[0]


def entries() -> list[Entry]:
    """Every statement of the store, by noun and then by name."""
    return [entry(statement) for _, statement in sorted(query.statements.items())]


def entry(statement: Statement) -> Entry:
    """One statement."""
    source = statement.path.read_text(encoding="utf-8")
    header, start = read_header(statement.path, statement.name, source)
    use = uses()[statement.name]
    return Entry(
        name=statement.name,
        path=f"{query.folder().name}/{statement.name}.sql",
        description=header.description,
        text=source[start:].strip(),
        returns=header.returns,
        columns=_columns(statement.row_type),
        parameters=tuple(
            Column(name, type_name(kind))
            for name, kind in zip(statement.parameters, statement.parameter_types, strict=True)
        ),
        roles=header.roles,
        uses=header.uses,
        scans=tuple(Scan(*scan) for scan in header.scans),
        not_null=header.not_null,
        one_row=header.one_row,
        signature=use.signature,
        sites=use.sites,
        callers=use.callers,
    )


def _columns(row: Any) -> tuple[Column, ...]:
    if row is None or not issubclass(row, msgspec.Struct):
        return ()
    return tuple(Column(field.name, type_name(field.type)) for field in msgspec.structs.fields(row))


def type_name(kind: Any) -> str:
    """A type as one writes it: ``list[str]``, ``datetime | None``; ``missing`` where a statement may leave it out."""
    if kind in (type(None), msgspec.UnsetType):
        return "None" if kind is type(None) else "missing"
    if isinstance(kind, UnionType):
        return " | ".join(type_name(part) for part in get_args(kind))
    if get_origin(kind) is not None:
        return f"{get_origin(kind).__name__}[{', '.join(type_name(part) for part in get_args(kind))}]"
    return str(kind.__name__)
