"""What a database holds, object by object, as its own catalogue tells it: to compare, and to write down.

``objects/*.sql`` ask one kind of object each. Definitions are PostgreSQL's own words (pg_get_indexdef and the like), so
they compare between servers of one major version; between two versions a word here and there may differ.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from crafely.db.header import ROLES

_MONTH = re.compile(r"_y\d{4}m\d{2}(?=$|\W|_)")
_BOUNDS = re.compile(r"FOR VALUES FROM \(.*?\) TO \(.*?\)")


class Object(msgspec.Struct, frozen=True):
    """One thing in a database.

    ``parent`` is the table that it belongs to, if any; ``definition`` is comparable text; ``place`` orders columns;
    ``inherited``: it comes with the parent of a partition.
    """

    kind: str
    schema: str
    parent: str
    name: str
    definition: str
    place: int
    inherited: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it in its database."""
        return self.kind, self.parent, self.name

    @property
    def title(self) -> str:
        """As one says it: «index x on table y»."""
        if self.kind == "table" and not self.parent:
            return f"table {self.name}"
        match self.kind:
            case "grant":
                return f"grant on {self.parent} to {self.name}"
            case "comment":
                return f"comment on {self.parent} {self.name}"
            case "column":
                return f"column {self.parent}.{self.name}"
            case "row level security":
                return f"row level security of {self.parent}"
        return f"{self.kind} {self.name} on {self.parent}" if self.parent else f"{self.kind} {self.name}"


class Difference(msgspec.Struct, frozen=True):
    """An object that is not as it should be: ``wanted`` is None where none should be, ``found`` where it is missing."""

    object: str
    kind: str
    parent: str
    name: str
    wanted: str | None
    found: str | None

    def __str__(self) -> str:
        if self.wanted is None:
            return f"{self.object}: should not be there ({_brief(self.found)})"
        if self.found is None:
            return f"{self.object}: is missing ({_brief(self.wanted)})"
        wanted, found = _apart(self.wanted, self.found)
        return f"{self.object}: is «{found}», should be «{wanted}»"


def take(connection: psycopg.Connection[Any]) -> list[Object]:
    """Every object of a database, but for the system's, extensions' and yoyo's own. Only reads, from one snapshot.

    Takes an autocommit connection. Raises psycopg.Error.
    """
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        return look(connection)


def look(connection: psycopg.Connection[Any]) -> list[Object]:
    """The same within an open transaction, whose settings it changes. Raises psycopg.Error."""
    connection.execute("set local timezone = 'UTC'")
    # Names in public are then said without it, whatever the login's own path is.
    connection.execute("set local search_path = public")
    connection.execute(
        "select set_config('crafely.roles', %s, true), set_config('crafely.owner', coalesce(("
        " select pg_get_userbyid(relowner) from pg_class where oid = to_regclass('_yoyo_migration')"
        "), current_user), true)",
        [",".join(ROLES)],
    )
    found = [Object(*row) for text in _questions() for row in connection.execute(text).fetchall()]
    return sorted(found, key=lambda one: one.key)


def compare(wanted: Iterable[Object], found: Iterable[Object]) -> list[Difference]:
    """How one database differs from another: what is missing, what is too much, what is other."""
    left = {one.key: one for one in wanted}
    right = {one.key: one for one in found}
    differences = []
    for key in sorted(left.keys() | right.keys()):
        this, other = left.get(key), right.get(key)
        if this and other and this.definition == other.definition:
            continue
        shown = this or other
        if shown:
            definition = this.definition if this else None
            differences.append(Difference(shown.title, *key, definition, other.definition if other else None))
    return differences


def for_months_of(wanted: Iterable[Object], found: Iterable[Object]) -> list[Object]:
    """What is wanted, with the months that ``found`` has: which there are is for housekeeping to say.

    What holds for one month's partition holds for each of them: a partition without its row-level security is seen.
    """
    wanted = list(wanted)
    months = {one.name for one in found if one.kind == "table" and one.parent and _MONTH.search(one.name)}
    patterns = {_month(one).key: _month(one) for one in wanted if is_month(one)}
    made = [
        _renamed(pattern, stem, month)
        for month in sorted(months)
        for stem in [_MONTH.sub("", month)]
        for pattern in patterns.values()
        if _stems(pattern) == stem
    ]
    return [one for one in wanted if not is_month(one)] + made


def is_month(one: Object) -> bool:
    """Whether it is a month's partition, or belongs to one."""
    return bool(_MONTH.search(one.parent if _belongs(one) else one.name))


def same_months(objects: Iterable[Object]) -> list[Object]:
    """The objects, with the bounds of months left out: what is left is the same in each of them."""
    return [msgspec.structs.replace(one, definition=_unbound(one)) for one in objects]


def _belongs(one: Object) -> bool:
    # A partition's parent is the whole table, a comment's is the kind of what it is about.
    return bool(one.parent) and one.kind not in {"table", "comment"}


def _month(one: Object) -> Object:
    """The same for any month."""
    return msgspec.structs.replace(
        one,
        parent=_MONTH.sub("_month", one.parent),
        name=_MONTH.sub("_month", one.name),
        definition=_MONTH.sub("_month", _unbound(one)),
    )


def _stems(pattern: Object) -> str:
    name = pattern.parent if _belongs(pattern) else pattern.name
    return re.split(r"_month(?=$|\W|_)", name)[0]


def _renamed(pattern: Object, stem: str, month: str) -> Object:
    fields = ("parent", "name", "definition")
    names = {field: getattr(pattern, field).replace(f"{stem}_month", month) for field in fields}
    return msgspec.structs.replace(pattern, **names)


def _unbound(one: Object) -> str:
    return _BOUNDS.sub("FOR VALUES OF ITS MONTH", one.definition) if is_month(one) else one.definition


def _apart(wanted: str, found: str) -> tuple[str, str]:
    """Two texts from the line on in which they differ, each in a line."""
    left, right = wanted.splitlines() or [""], found.splitlines() or [""]
    same = 0
    while same < min(len(left), len(right)) - 1 and left[same] == right[same]:
        same += 1
    return _brief(" ".join(left[same:])), _brief(" ".join(right[same:]))


def _brief(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= 300 else f"{line[:299]}…"


@cache
def _questions() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((Path(__file__).parent / "objects").glob("*.sql")))
