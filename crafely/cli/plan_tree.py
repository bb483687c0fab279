"""A plan as the lines that a DBA is used to, made from EXPLAIN's JSON: a node a line, and under it what it says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from crafely.db.plans import Plan

# What a node may say of itself, in this order; every other property is for programs.
_SAID = (
    "Index Cond",
    "Recheck Cond",
    "Hash Cond",
    "Merge Cond",
    "Join Filter",
    "Filter",
    "One-Time Filter",
    "Group Key",
    "Sort Key",
    "Presorted Key",
    "Sort Method",
    "Conflict Resolution",
    "Conflict Arbiter Indexes",
    "Conflict Filter",
    "Subplans Removed",
    "Rows Removed by Filter",
    "Rows Removed by Index Recheck",
    "Rows Removed by Join Filter",
    "Heap Fetches",
)
# What says nothing when it is 0.
_QUIET = {"Subplans Removed", "Rows Removed by Filter", "Rows Removed by Index Recheck", "Rows Removed by Join Filter"}
_PARAMETER = re.compile(r"\$(\d+)")
_RETURNS = re.compile(r"\(returns ([$\d, ]+)\)")


def lines(plan: Plan, parameters: Sequence[str] = ()) -> list[str]:
    """The lines of a plan, with what it took where it was run; ``$1`` is shown as the first parameter's :name."""
    found = list(_node(plan.json["Plan"], "", ""))
    if "Execution Time" in plan.json:
        found.append(f"Planning {plan.json['Planning Time']:.3f} ms, execution {plan.json['Execution Time']:.3f} ms")
        found += [
            f"Trigger {trigger['Trigger Name']}: {trigger['Calls']} calls, {trigger['Time']:.3f} ms"
            for trigger in plan.json.get("Triggers", ())
        ]

    # Before PostgreSQL 17 what an InitPlan gives is called $0, $1 …, too: those names stay as they are.
    theirs = {number for line in found for given in _RETURNS.findall(line) for number in _PARAMETER.findall(given)}

    def named(match: re.Match[str]) -> str:
        number = int(match[1])
        known = 1 <= number <= len(parameters) and match[1] not in theirs
        return f":{parameters[number - 1]}" if known else match[0]

    return [_PARAMETER.sub(named, line) for line in found]


def shape(plan: Plan) -> tuple[Any, ...]:
    """What two plans have in common when they do the same: their nodes, without costs, rows and conditions."""
    return _shape(plan.json["Plan"])


def _shape(node: Mapping[str, Any]) -> tuple[Any, ...]:
    return _title(node), *(_shape(below) for below in node.get("Plans", ()))


def _node(node: Mapping[str, Any], indent: str, arrow: str) -> Iterator[str]:
    if "Subplan Name" in node:
        yield f"{indent}{node['Subplan Name']}"
        indent += "  "
    estimate = f"cost {node['Total Cost']:.2f}, {_rows(node['Plan Rows'])} expected"
    yield f"{indent}{arrow}{_title(node)}  ({estimate}{_actual(node)})"
    indent += " " * len(arrow)
    for word in _SAID:
        value = node.get(word)
        if value is not None and not (word in _QUIET and value == 0):
            yield f"{indent}  {word}: {', '.join(value) if isinstance(value, list) else value}"
    if buffers := _buffers(node):
        yield f"{indent}  Buffers: {buffers}"
    for below in node.get("Plans", ()):
        yield from _node(below, indent + "  ", "→ ")


def _title(node: Mapping[str, Any]) -> str:
    kind = str(node["Node Type"])
    if kind == "ModifyTable":
        kind = str(node["Operation"])
    elif kind in {"Aggregate", "SetOp"} and node.get("Strategy") not in {None, "Plain"}:
        kind = f"{node['Strategy']} {kind}"
    elif "Join" in kind and node.get("Join Type") not in {None, "Inner"}:
        kind = kind.replace("Join", f"{node['Join Type']} Join")
    elif kind == "Nested Loop" and node.get("Join Type") not in {None, "Inner"}:
        kind = f"{kind} {node['Join Type']} Join"
    if node.get("Scan Direction") == "Backward":
        kind += " Backward"
    index = f" using {node['Index Name']}" if "Index Name" in node else ""
    thing = next((node[key] for key in ("Relation Name", "CTE Name", "Function Name") if key in node), "")
    alias = node.get("Alias", thing)
    return f"{kind}{index}{f' on {thing}' if thing else ''}{f' {alias}' if thing and alias != thing else ''}"


def _actual(node: Mapping[str, Any]) -> str:
    if "Actual Loops" not in node:
        return ""
    loops = node["Actual Loops"]
    if not loops:
        return "; never run"
    took = f"; {_rows(node['Actual Rows'])} in {node['Actual Total Time']:.3f} ms"
    return took + (f", {loops} times" if loops > 1 else "")


def _rows(count: float) -> str:
    # From PostgreSQL 18 on, the rows of a loop are an average.
    number = f"{count:,.2f}".rstrip("0").rstrip(".")
    return f"{number} row{'' if number == '1' else 's'}"


def _buffers(node: Mapping[str, Any]) -> str:
    said = (
        f"{node[f'Shared {kind} Blocks']:,} {kind.lower()}"
        for kind in ("Hit", "Read", "Dirtied", "Written")
        if node.get(f"Shared {kind} Blocks")
    )
    return ", ".join(said)
