"""How many rows a statement can give, from the server's own parse tree."""

from collections.abc import Iterable, Iterator

from crafely.db.contract.nodes import Node, walk
from crafely.db.contract.tree import (
    DELETE,
    FUNCTION,
    INSERT,
    LEFT,
    RELATION,
    SELECT,
    UPDATE,
    VALUES,
    Scope,
    bare,
    conjunction,
    entries,
    parts,
)

# «on conflict do nothing», by number.
_NOTHING = "1"


def at_most_one(scope: Scope) -> bool:
    """Whether a query can be seen to give one row or none."""
    query = scope.query
    if _is_limited_to_one(query["limitCount"]):
        return True
    if query["setOperations"] or query["hasTargetSRFs"] == "true" or query["groupingSets"]:
        return False
    if scope.command not in {SELECT, UPDATE, INSERT, DELETE}:
        return False
    if query["hasAggs"] == "true" and not query["groupClause"]:
        return True
    return _Pinned(scope).all()


def at_least_one(scope: Scope) -> bool:
    """Whether a query can be seen to give at least one row (or an error)."""
    query = scope.query
    if query["setOperations"] or query["limitOffset"] or query["havingQual"] or query["hasTargetSRFs"] == "true":
        return False
    if query["limitCount"] and not _is_limited_to_one(query["limitCount"]):
        return False
    if query["hasAggs"] == "true" and not query["groupClause"] and not query["groupingSets"]:
        return True
    conflict = query["onConflict"]
    if conflict and (conflict["action"] == _NOTHING or conflict["onConflictWhere"]):
        return False
    if scope.command not in {SELECT, INSERT} or query["jointree"]["quals"]:
        return False
    return all(_gives_a_row(source, scope) for source in query["jointree"]["fromlist"] or ())


def _gives_a_row(source: Node, scope: Scope) -> bool:
    if source[""] == "JOINEXPR":
        return source["jointype"] == LEFT and _gives_a_row(source["larg"], scope)
    if source[""] != "RANGETBLREF":
        return False
    entry = scope.entry(source["rtindex"])
    if entry["rtekind"] == VALUES:
        return True
    if entry["rtekind"] == FUNCTION:
        return not _gives_set(entry, scope)
    below = scope.below(entry)
    return below is not None and at_least_one(below)


def _is_limited_to_one(limit: Node | None) -> bool:
    if limit and limit[""] == "FUNCEXPR" and limit["funcformat"] != "0" and len(limit["args"]) == 1:
        limit = limit["args"][0]  # a cast
    # A number's bytes, in the order of the machine.
    value = limit["constvalue"] if limit and limit[""] == "CONST" else None
    return value in ([1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1])


def _gives_set(entry: Node, scope: Scope) -> bool:
    for function in entry["functions"]:
        expression = function["funcexpr"]
        found = scope.facts.functions.get(int(expression["funcid"])) if expression[""] == "FUNCEXPR" else None
        if found is None or found.returns_set:
            return True
    return False


class _Pinned:
    """Finds out which entries of a query give one row at most, one after the other."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        # Numbers of the entries that give one row at most, whatever else comes.
        self._pinned: set[str] = set()
        # What is said to be equal: entry, column, expression.
        self._equals = list(self._equalities(scope.conjuncts))
        for own, condition in _left_joins(scope.query["jointree"]):
            # The condition of a left join says nothing of the rows on its left, which come anyway.
            self._equals += [found for found in self._equalities(conjunction(condition)) if found[0] in own]

    def all(self) -> bool:
        sources = set(entries(self._scope.query["jointree"]))
        while found := {number for number in sources - self._pinned if self._is_pinned(number)}:
            self._pinned |= found
        return sources <= self._pinned

    def _equalities(self, conditions: Iterable[Node]) -> Iterator[tuple[str, int, Node]]:
        """Of «column = expression», both ways round: the entry, the column's number, and the expression."""
        for condition in conditions:
            if condition[""] != "OPEXPR" or self._scope.facts.operators.get(int(condition["opno"])) != "=":
                continue
            for column, value in (condition["args"], condition["args"][::-1]):
                plain = bare(column)
                if plain[""] == "VAR" and plain["varlevelsup"] == "0":
                    yield plain["varno"], int(plain["varattno"]), value

    def _is_pinned(self, number: str) -> bool:
        scope = self._scope
        entry = scope.entry(number)
        if entry["rtekind"] == VALUES:
            return len(entry["values_lists"]) == 1
        if entry["rtekind"] == FUNCTION:
            return not _gives_set(entry, scope)
        if entry["rtekind"] != RELATION:
            below = scope.below(entry)
            return below is not None and at_most_one(below)
        known = {column for owner, column, value in self._equals if owner == number and self._is_known(value)}
        return any(
            i.is_unique and i.table == int(entry["relid"]) and 0 not in i.keys and known.issuperset(i.keys)
            for i in scope.facts.indexes.values()
        )

    def _is_known(self, value: Node) -> bool:
        """Whether an expression has one value: it depends on pinned entries and on what is outside alone."""
        if value[""] == "SUBLINK":
            return value["subLinkType"] == "4" and all(
                node["varlevelsup"] == "0" for node in walk(value) if node[""] == "VAR"
            )
        if value[""] == "VAR" and value["varlevelsup"] == "0":
            return value["varno"] in self._pinned
        functions = [value[name] for name in ("funcid", "opfuncid") if name in value]
        if any((f := self._scope.facts.functions.get(int(oid))) is None or f.is_volatile for oid in functions):
            return False
        below = [part for field in value.values() for part in (field if isinstance(field, list) else [field])]
        return all(self._is_known(part) for part in below if isinstance(part, dict))


def _left_joins(node: Node) -> Iterator[tuple[set[str], Node]]:
    """Of each left join the entries on its right, and its condition."""
    if node[""] == "JOINEXPR" and node["jointype"] == LEFT:
        yield set(entries(node["rarg"])), node["quals"]
    for below in parts(node):
        yield from _left_joins(below)
