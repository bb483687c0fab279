"""What schemathesis is told of this API; it loads this module itself (SCHEMATHESIS_HOOKS).

A description says what one value may be. What it cannot say (two values that exclude each other, what must exist, what
time it is) stands in RULES: a request that fits the description may be refused for one of these, and for nothing else.
"""

import atexit
import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import schemathesis
from hypothesis import strategies as st

if TYPE_CHECKING:
    from schemathesis.core.failures import Failure
    from schemathesis.core.transport import Response
    from schemathesis.generation.case import Case
    from schemathesis.hooks import HookContext

# What an answer says of a value that fits its description.
_RULES = (
    "cursor and skip exclude each other; send one of them",
    "expected the nextCursor of an earlier page, unchanged",
    "expected a later one than from",
    r"expected at most \d+ days from from to to",
    "expected a time within the years .*",
    "expected a time in the future; .*",
    "expected a time of the last 35 days",
    "expected no time before startDate",
    "expected the id of .*",
    "expected no apiKeyId: .*",
    "required with rowId",
    "required, since no API key sends this record",
    "expected each permission once",
    "expected a decimal number of at least 0",
    r"expected at most \d+ digits before the point and \d+ after it",
    "tokensIn and tokensOut together are more than .*",
    # To a schema, 1.0 is an integer, too.
    "expected an integer.*; got a number with a fraction or an exponent",
    "expected a number between -1e300 and 1e300, of at most 300 digits",
    # No schema of a text says which characters PostgreSQL cannot store.
    r"text holds the character U\+0000",
    "text holds a character that cannot be stored",
    "text holds half of a surrogate pair",
)
RULES = re.compile("|".join(_RULES))

# schemathesis' names for: a request that does not fit was taken, one that fits was refused.
ACCEPTED, REJECTED = "ST201", "ST202"
COUNTS = os.environ.get("SCHEMATHESIS_COUNTS")
# The ids of what this run comes with, keys above all: it must not revoke them.
OWN = frozenset(os.environ.get("SCHEMATHESIS_OWN", "").split(","))

# Amounts as people write them.
schemathesis.openapi.format("decimal", st.from_regex(r"(0|[1-9][0-9]{0,5})(\.[0-9]{1,2})?", fullmatch=True))

_numbers = itertools.count(1)
_answers: Counter[tuple[str, int]] = Counter()


@schemathesis.hook
def filter_case(context: "HookContext", case: "Case[Any]") -> bool:
    """Leaves alone what this run comes with."""
    return case.method == "GET" or (case.path_parameters or {}).get("id") not in OWN


@schemathesis.hook
def before_call(context: "HookContext", case: "Case[Any]", kwargs: dict[str, Any]) -> None:
    """Has more requests come through to what they are about; what is dropped here, other tests send.

    schemathesis takes 0 for a text where a header has a pattern, and one Idempotency-Key for all; and it cannot
    know which parameters exclude each other.
    """
    for name in ("If-Match", "If-None-Match"):
        if case.headers and case.headers.get(name) == "0":
            del case.headers[name]
    if case.headers and case.headers.get("Idempotency-Key", "").isalnum():
        case.headers["Idempotency-Key"] += f"-{next(_numbers)}"
    if case.query and {"cursor", "skip"} <= set(case.query):
        del case.query["cursor"]


@schemathesis.hook
def filter_failure(context: "HookContext", failure: "Failure", case: "Case[Any]", response: "Response") -> bool:
    """Drops what is no failure.

    A request that fits the description is refused for a reason that no description can say; one that does not fit is
    taken, but for the items of an array that are reported in their places.
    """
    if failure.code == ACCEPTED and case.operation.path == "/v1/usage":
        return not response.json().get("invalid")
    if failure.code != REJECTED or response.status_code != 422:
        return True
    if response.json()["code"] == "idempotency_key_reused":
        return False
    errors: list[dict[str, Any]] = response.json()["errors"]
    return not errors or not all(RULES.fullmatch(error["detail"]) for error in errors)


@schemathesis.hook
def after_call(context: "HookContext", case: "Case[Any]", response: "Response") -> None:
    """Counts an answer."""
    _answers[f"{case.operation.method.upper()} {case.operation.path}", response.status_code] += 1


@atexit.register
def _write() -> None:
    if COUNTS:
        Path(COUNTS).write_text(json.dumps([[*key, count] for key, count in _answers.items()]))
