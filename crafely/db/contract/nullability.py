"""Which columns of a statement can be null, from the server's own parse tree.

Everything is taken for possibly null that is not proved otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

from crafely.db.contract.cardinality import at_least_one
from crafely.db.contract.nodes import Node, walk
from crafely.db.contract.tree import (
    COMPARISONS,
    CTE,
    FUNCTION,
    GROUP,
    JOIN,
    RELATION,
    SUBQUERY,
    VALUES,
    WRAPPERS,
    Scope,
    bare,
)

# Functions of the server that never give null, whatever they are given.
_NEVER = {
    "array_fill", "clock_timestamp", "concat", "concat_ws", "current_database", "current_user", "gen_random_uuid",
    "generate_series", "json_build_array", "json_build_object", "jsonb_build_array", "jsonb_build_object", "now",
    "num_nonnulls", "num_nulls", "pg_backend_pid", "random", "row_to_json", "session_user", "statement_timestamp",
    "transaction_timestamp", "uuidv4", "uuidv7", "version", "row_number", "rank", "dense_rank", "percent_rank",
    "cume_dist", "count",
}  # fmt: skip
# Those that give null only for a null.
_STRICT = {
    "abs", "age", "array_append", "array_cat", "array_to_string", "ascii", "btrim", "cardinality", "ceil", "ceiling",
    "char_length", "character_length", "chr", "date", "date_bin", "date_trunc", "encode", "floor", "format", "hashtext",
    "hashtextextended", "initcap", "left", "length", "lower", "lpad", "ltrim", "make_date", "make_interval", "md5",
    "mod", "octet_length", "position", "power", "quote_ident", "quote_literal", "regexp_replace", "repeat", "replace",
    "reverse", "right", "round", "rpad", "rtrim", "sha256", "split_part", "starts_with", "strpos", "substr",
    "substring", "timezone", "to_char", "to_date", "to_hex", "to_jsonb", "to_timestamp", "translate", "trunc", "upper",
    "jsonb_typeof", "like", "notlike", "bit_length", "sign", "sqrt", "exp", "ln", "log", "jsonb_pretty",
}  # fmt: skip
_OPERATORS = COMPARISONS | {
    "+",
    "-",
    "*",
    "/",
    "%",
    "||",
    "!~~",
    "!~",
    "~~*",
    "!~~*",
    "~*",
    "!~*",
    "@>",
    "<@",
    "?",
    "&&",
}
# Aggregates that give null only when no row came, or only nulls did.
_SUMS = {"avg", "bit_and", "bit_or", "bool_and", "bool_or", "every", "max", "min", "string_agg", "sum"}
# … and those that keep nulls.
_COLLECTIONS = {"array_agg", "json_agg", "json_object_agg", "jsonb_agg", "jsonb_object_agg"}
# Expressions that are never null themselves.
_SOLID = {
    "ARRAY",
    "ARRAYEXPR",
    "BOOLEANTEST",
    "DISTINCTEXPR",
    "GROUPINGFUNC",
    "NEXTVALUEEXPR",
    "NULLTEST",
    "ROW",
    "ROWEXPR",
}
_JSON = {"json", "jsonb"}


class Nullability:
    """Answers for one statement. ``nullable`` are the numbers of the parameters that may be null, from 1."""

    def __init__(self, scope: Scope, nullable: set[int]) -> None:
        self._scope = scope
        self._parameters = nullable
        self._facts = scope.facts
        self._functions = scope.facts.functions
        # Columns of subqueries that are being looked at: a recursive query says nothing new about itself.
        self._open: set[tuple[int, int]] = set()

    def columns(self) -> list[bool]:
        """Whether each column of the statement may be null, in order."""
        return [self.column(self._scope, number) for number in range(len(self._scope.columns))]

    def column(self, scope: Scope, number: int) -> bool:
        """Whether a column of a query may be null; columns count from 0."""
        if branches := scope.branches():
            return any(self.column(branch, number) for branch in branches)
        columns = scope.columns
        return number >= len(columns) or self.expression(columns[number]["expr"], scope)

    def expression(self, node: Node | None, scope: Scope) -> bool:
        """Whether an expression of a query may be null."""
        if node is None:
            return True
        if node[""] in WRAPPERS:
            return self.expression(node["arg"], scope)
        ask = self._KINDS.get(node[""])
        return node[""] not in _SOLID if ask is None else bool(ask(self, node, scope))

    def _constant(self, node: Node, _: Scope) -> bool:
        return bool(node["constisnull"] == "true")

    def _parameter(self, node: Node, _: Scope) -> bool:
        return node["paramkind"] != "0" or int(node["paramid"]) in self._parameters

    def _operator(self, node: Node, scope: Scope) -> bool:
        return self._facts.operators.get(int(node["opno"])) not in _OPERATORS or self._any(node["args"], scope)

    def _boolean(self, node: Node, scope: Scope) -> bool:
        return self._any(node["args"], scope)

    def _first(self, node: Node, scope: Scope) -> bool:
        """coalesce, greatest and least: null only when all are."""
        return all(self.expression(argument, scope) for argument in node["args"])

    def _case(self, node: Node, scope: Scope) -> bool:
        return self._any([*(branch["result"] for branch in node["args"]), node["defresult"]], scope)

    def _among(self, node: Node, scope: Scope) -> bool:
        """x = any (array): null for an array that is null or has a null in it."""
        value, array = node["args"][0], bare(node["args"][1])
        if array[""] in {"ARRAYEXPR", "ARRAY"}:
            return self._any([value, *array["elements"]], scope)
        return array[""] != "CONST" or self._any([value, array], scope)

    def _any(self, expressions: list[Node | None] | None, scope: Scope) -> bool:
        return any(self.expression(expression, scope) for expression in expressions or ())

    def _function(self, node: Node, scope: Scope) -> bool:
        function = self._functions.get(int(node["funcid"]))
        if function is None or function.schema != "pg_catalog":
            return True
        if function.name in _NEVER:
            return False
        # A cast gives null for a null, and for what is null in JSON.
        first = next(iter(node["args"] or ()), None)
        is_cast = node["funcformat"] in {"1", "2"} and self._type(first) not in _JSON
        return not (is_cast or function.name in _STRICT) or self._any(node["args"], scope)

    def _type(self, node: Node | None) -> str:
        names = ("vartype", "consttype", "paramtype", "funcresulttype", "opresulttype", "resulttype", "aggtype")
        oid = next((node[name] for name in names if node and name in node), "0")
        # What cannot be seen may be anything.
        return self._facts.types.get(int(oid), "json")

    def _aggregate(self, node: Node, scope: Scope) -> bool:
        is_window = node[""] == "WINDOWFUNC"
        function = self._functions.get(int(node["winfnoid" if is_window else "aggfnoid"]))
        if function is None or function.schema != "pg_catalog":
            return True
        if function.name in _NEVER:
            return False
        # A group has a row, a frame may have none, and what has no «group by» is given without any.
        has_rows = not is_window and scope.query["groupClause"] and not scope.query["groupingSets"]
        if not has_rows or node["aggfilter"] or node["agglevelsup"] != "0":
            return True
        if function.name in _COLLECTIONS:
            return False
        return function.name not in _SUMS or self._any([entry["expr"] for entry in node["args"] or ()], scope)

    def _sublink(self, node: Node, scope: Scope) -> bool:
        if node["subLinkType"] == "4":
            below = Scope(node["subselect"], scope.facts, scope)
            return not at_least_one(below) or self.column(below, 0)
        # exists (…) and array(…) always say something; any other may meet a null.
        return node["subLinkType"] not in ("0", "6")

    def _variable(self, node: Node, scope: Scope) -> bool:
        owner = scope.up(int(node["varlevelsup"]))
        if owner is None:
            return True
        number, column = node["varno"], int(node["varattno"])
        if (number, node["varattno"]) in owner.proved:
            return False
        # Before PostgreSQL 16 the variable does not say whether an outer join is above it: then the joins do.
        nulled = node.get("varnullingrels", number in owner.nulled)
        # old and new of a «returning» (PostgreSQL 18): there is no old row of an insert.
        if nulled or node.get("varreturningtype", "0") != "0":
            return True
        return self._entry(owner.entry(number), number, column, owner)

    def _entry(self, entry: Node, number: str, column: int, owner: Scope) -> bool:
        """Whether a column of an entry of the range table may be null; columns count from 1, 0 is the row."""
        kind = entry["rtekind"]
        if kind == RELATION:
            table = owner.table(number)
            return column > 0 and (table is None or not table.columns.get(column, ("", False))[1])
        if column <= 0:
            return False
        if kind == FUNCTION:
            return self._function_entry(entry, column, owner)
        if kind in {SUBQUERY, CTE}:
            return self._query_entry(entry, column, owner)
        named = {JOIN: "joinaliasvars", GROUP: "groupexprs"}.get(kind)
        if named:
            return self.expression(entry[named][column - 1], owner)
        return kind != VALUES or any(self.expression(row[column - 1], owner) for row in entry["values_lists"])

    def _query_entry(self, entry: Node, column: int, owner: Scope) -> bool:
        below = owner.below(entry)
        if below is None:
            return True
        mark = (id(below.query), column)
        if mark in self._open:
            return False
        self._open.add(mark)
        try:
            return self.column(below, column - 1)
        finally:
            self._open.discard(mark)

    def _function_entry(self, entry: Node, column: int, owner: Scope) -> bool:
        counts = [int(function["funccolcount"]) for function in entry["functions"]]
        if column > sum(counts):
            return bool(entry["funcordinality"] != "true")
        if counts == [1] and entry["functions"][0]["funcexpr"][""] == "FUNCEXPR":
            return self._function(entry["functions"][0]["funcexpr"], owner)
        return True

    def objects(self) -> Iterator[tuple[int, list[tuple[str, bool]]]]:
        """The JSON objects that the statement builds: the column's number from 0, the keys, and which may be null."""
        for number in range(len(self._scope.columns)):
            for node, scope in self._origins(self._scope.columns[number]["expr"], self._scope):
                function = self._functions.get(int(node["funcid"])) if node[""] == "FUNCEXPR" else None
                if function and (function.schema, function.name) == ("pg_catalog", "jsonb_build_object"):
                    pairs = list(zip(node["args"][::2], node["args"][1::2], strict=False))
                    yield number, [(self._text(key), self.expression(value, scope)) for key, value in pairs]

    def _origins(self, node: Node, scope: Scope) -> Iterator[tuple[Node, Scope]]:
        """Every node that an expression is made of, with the query it stands in: through names, into subqueries."""
        for below in walk(node, into_queries=False):
            yield below, scope
            if below[""] == "VAR" and (owner := scope.up(int(below["varlevelsup"]))):
                entry = owner.entry(below["varno"])
                query = owner.below(entry)
                if query and not query.branches() and 0 < int(below["varattno"]) <= len(query.columns):
                    yield from self._origins(query.columns[int(below["varattno"]) - 1]["expr"], query)
            elif below[""] == "SUBLINK":
                query = Scope(below["subselect"], scope.facts, scope)
                for column in query.columns:
                    yield from self._origins(column["expr"], query)

    def _text(self, node: Node) -> str:
        """The text of a constant: of a text the bytes behind the four that hold their number, else those before a 0."""
        if node[""] != "CONST" or not isinstance(node["constvalue"], list):
            return "?"
        value = bytes(byte & 255 for byte in node["constvalue"])
        return (value[4:] if self._type(node) == "text" else value.rstrip(b"\0")).decode(errors="replace")

    _KINDS: ClassVar[Mapping[str, Callable[["Nullability", Node, Scope], bool]]] = {
        "AGGREF": _aggregate,
        "BOOLEXPR": _boolean,
        "CASE": _case,
        "CASEEXPR": _case,
        "COALESCE": _first,
        "COALESCEEXPR": _first,
        "CONST": _constant,
        "FUNCEXPR": _function,
        "MINMAX": _first,
        "MINMAXEXPR": _first,
        "OPEXPR": _operator,
        "PARAM": _parameter,
        "SCALARARRAYOPEXPR": _among,
        "SUBLINK": _sublink,
        "VAR": _variable,
        "WINDOWFUNC": _aggregate,
    }
