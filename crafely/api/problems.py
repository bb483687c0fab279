"""Every error that a client can see: RFC 9457 problem details, from one registry of codes.

A handler raises Problem with a code of CODES. What PostgreSQL refuses becomes a Problem here and nowhere else:
a constraint's name finds its answer in CONSTRAINTS, other errors theirs by SQLSTATE.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import psycopg
from aiohttp import web
from msgspec import UNSET, UnsetType, field
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from crafely.api.redaction import redacted
from crafely.auth import Denied
from crafely.auth.clerk import Unavailable
from crafely.auth.hashing import Busy
from crafely.auth.rate_limits import Exceeded
from crafely.db.coalesce import QueueFullError
from crafely.db.session import DatabaseUnavailableError
from crafely.keyring import UnreadableError

T = TypeVar("T")

CONTENT_TYPE = "application/problem+json"
MAX_ERRORS = 100


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One bad value: where it stands and which rule it breaks. The value itself is never repeated."""

    detail: str
    # A JSON pointer (RFC 6901) into the body.
    pointer: str | None = None
    # The name of a query parameter, a path parameter or a header.
    parameter: str | None = None


class ProblemDetails(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What every answer with a status of 400 or more carries (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[FieldError] = []
    # The limits that are used up, as the RateLimit header names them.
    violated_policies: list[str] | UnsetType = field(default=UNSET, name="violated-policies")


class Code(NamedTuple):
    """One kind of problem: its HTTP status, its title and what a client can do about it."""

    status: int
    title: str
    explanation: str


CODES: dict[str, Code] = {
    "bad_request": Code(400, "Bad request", "The request cannot be read as HTTP. Check how it was built."),
    "missing_body": Code(400, "Body missing", "This operation takes a JSON body. Send one."),
    "malformed_json": Code(400, "Malformed JSON", "The body is not JSON in UTF-8 (RFC 8259). The detail says where."),
    "unauthenticated": Code(
        401,
        "Not authenticated",
        "The request carries no credentials. Send an API key or a session token as Authorization: Bearer, or an API "
        "key as X-API-Key.",
    ),
    "invalid_token": Code(
        401, "Token refused", "The request carries a token, but it is not accepted. The detail says why."
    ),
    "insufficient_permissions": Code(
        403,
        "Insufficient permissions",
        "The caller is known but lacks the permission that the detail names. Use a key that holds it.",
    ),
    "not_found": Code(404, "Not found", "Nothing stands at this address, or nothing that the caller may see."),
    "method_not_allowed": Code(405, "Method not allowed", "The address exists; the Allow header lists its methods."),
    "request_timeout": Code(
        408,
        "Request too slow",
        "The request did not arrive within the time limit. Send it in one piece, or less of it.",
    ),
    "conflict": Code(409, "Conflict", "The request collides with what is stored. Read the present state first."),
    "already_exists": Code(409, "Already exists", "A value that must be unique is taken. Choose another."),
    "already_subscribed": Code(
        409, "Already subscribed", "The user has an active subscription to this package. Cancel it first."
    ),
    "in_flight": Code(
        409,
        "In flight",
        "A request with this Idempotency-Key is under way. Retry after Retry-After to have its answer.",
    ),
    "precondition_failed": Code(
        412,
        "Precondition failed",
        "This has been changed since the version that If-Match names. Nothing was done: read it anew.",
    ),
    "too_large": Code(413, "Body too large", "The body is larger than this server accepts. Send less at a time."),
    "unsupported_media_type": Code(
        415,
        "Unsupported media type",
        "Bodies are application/json in UTF-8, without Content-Encoding.",
    ),
    "expectation_failed": Code(
        417, "Expectation failed", "The only expectation that this server knows is Expect: 100-continue."
    ),
    "invalid": Code(
        422,
        "Invalid value",
        "The request is well formed, but a value in it breaks a rule. Each of the errors names the place and the rule.",
    ),
    "idempotency_key_reused": Code(
        422,
        "Idempotency-Key reused",
        "Another request of this user was answered under this Idempotency-Key. Take a new one for each request.",
    ),
    "rate_limited": Code(
        429, "Too many requests", "A limit is used up, which the detail names. Retry-After says when to return."
    ),
    "internal": Code(
        500, "Internal error", "The fault is the server's. Its log has the cause under the requestId of this answer."
    ),
    "unreadable": Code(
        500,
        "Unreadable",
        "A text is stored encrypted, and this server cannot decrypt it. It is not lost: its operator has to give the "
        "server the key that it was stored with.",
    ),
    "unavailable": Code(
        503, "Temporarily unavailable", "The server cannot do this now. Retry after the seconds that Retry-After says."
    ),
    "retry": Code(
        503,
        "Try again",
        "Two requests got in each other's way and this one gave way. Nothing was stored: send it again.",
    ),
    "timeout": Code(
        503, "Took too long", "The request was given up at its time limit. Ask for less, or retry after Retry-After."
    ),
}


class Problem(Exception):  # noqa: N818 - the name is RFC 9457's
    """An answer with a status of 400 or more.

    Takes a code of CODES (anything else is a KeyError, at once), one sentence for the client that never repeats a
    value, the errors of single fields (at most 100 are answered), headers for the answer, and the limits that
    are used up. A handler raises it.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        violated: Sequence[str] = (),
    ) -> None:
        kind = CODES[code]
        super().__init__(code)
        self.code = code
        self.status = kind.status
        self.detail = detail if detail is not None else kind.explanation
        self.errors = list(errors[:MAX_ERRORS])
        self.violated = list(violated) or UNSET
        self.headers = {**_HEADERS.get(kind.status, {}), **(headers or {})}

    def body(self, request_id: str) -> bytes:
        """Give the answer's body: JSON of ProblemDetails."""
        return _encode(
            ProblemDetails(
                type=f"/docs#problem-{self.code}",
                title=CODES[self.code].title,
                status=self.status,
                code=self.code,
                detail=redacted(self.detail),
                request_id=request_id,
                errors=[_without_secrets(error) for error in self.errors],
                violated_policies=self.violated,
            )
        )


def _without_secrets(error: FieldError) -> FieldError:
    """The place may have been named by a client who has put a key where a name belongs."""
    pointer, parameter = error.pointer, error.parameter
    return FieldError(
        detail=redacted(error.detail),
        pointer=redacted(pointer) if pointer else pointer,
        parameter=redacted(parameter) if parameter else parameter,
    )


_encode = msgspec.json.Encoder().encode
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


def invalid(detail: str, *, pointer: str | None = None, parameter: str | None = None) -> Problem:
    """Give the 422 for one bad value, at a JSON pointer of the body or in a named parameter."""
    place = f"parameter {parameter}" if parameter is not None else pointer or "body"
    return Problem(
        "invalid", f"{place}: {detail}", errors=[FieldError(detail=detail, pointer=pointer, parameter=parameter)]
    )


def found(row: T | None) -> T:
    """Give a row that a statement may not have found. Raises Problem (404) for None."""
    if row is None:
        raise Problem("not_found")
    return row


class Constraint(NamedTuple):
    """What a client is told when a constraint of this name refuses its row."""

    code: str
    detail: str
    pointer: str | None = None


_TEXT = "expected 1 to 255 characters"
_AMOUNT = "expected at least 0"
_OWN_KEY = "expected the id of one of the user's API keys"

# One row for each constraint or unique index that a client can run into, by its name in the migrations.
CONSTRAINTS: dict[str, Constraint] = {
    "api_keys_user_id_rotated_from_fkey": Constraint("invalid", _OWN_KEY),
    "api_keys_user_id_rotated_from_idx": Constraint("conflict", "the key has been replaced; rotate the one that did"),
    "api_keys_name_check": Constraint("invalid", _TEXT, "/name"),
    "api_keys_permissions_check": Constraint("invalid", "expected at most 64 permissions", "/permissions"),
    "api_keys_rate_limit_check": Constraint("invalid", "expected at least 1", "/rateLimit"),
    "agents_name_check": Constraint("invalid", _TEXT, "/name"),
    "agents_tools_check": Constraint("invalid", "expected an array", "/tools"),
    "threads_storage_id_key": Constraint("already_exists", "another thread has this storageId", "/storageId"),
    "threads_user_id_agent_id_fkey": Constraint("invalid", "expected the id of one of the user's agents", "/agentId"),
    "threads_name_check": Constraint("invalid", _TEXT, "/name"),
    "threads_storage_id_check": Constraint("invalid", _TEXT, "/storageId"),
    "threads_model_check": Constraint("invalid", _TEXT, "/model"),
    "packages_name_key": Constraint("already_exists", "another package has this name", "/name"),
    "packages_name_check": Constraint("invalid", _TEXT, "/name"),
    "packages_price_check": Constraint("invalid", _AMOUNT, "/price"),
    "packages_features_check": Constraint("invalid", "expected at most 100 features", "/features"),
    "packages_interval_check": Constraint("invalid", "expected month or year", "/interval"),
    "packages_rate_limit_check": Constraint("invalid", "expected at least 1", "/rateLimit"),
    "user_subscriptions_package_id_fkey": Constraint("invalid", "expected the id of a package", "/packageId"),
    "user_subscriptions_end_date_check": Constraint("invalid", "expected no time before startDate", "/endDate"),
    "user_subscriptions_user_id_package_id_idx": Constraint(
        "already_subscribed", "the user has an active subscription to this package", "/packageId"
    ),
    "usage_user_id_api_key_id_fkey": Constraint("invalid", _OWN_KEY, "/apiKeyId"),
    "usage_provider_check": Constraint("invalid", _TEXT, "/provider"),
    "usage_model_check": Constraint("invalid", _TEXT, "/model"),
    "usage_type_check": Constraint("invalid", _TEXT, "/type"),
    "usage_tokens_in_check": Constraint("invalid", _AMOUNT, "/tokensIn"),
    "usage_tokens_out_check": Constraint("invalid", _AMOUNT, "/tokensOut"),
    "usage_tokens_total_check": Constraint("invalid", _AMOUNT, "/tokensTotal"),
    "usage_cost_check": Constraint("invalid", _AMOUNT, "/cost"),
    "usage_currency_check": Constraint("invalid", "expected three letters a-z", "/currency"),
    "usage_metadata_check": Constraint("invalid", "expected an object", "/metadata"),
    "usage_event_id_check": Constraint("invalid", _TEXT, "/eventId"),
    "usage_events_pkey": Constraint("already_exists", "a record with this eventId is stored", "/eventId"),
}

# Where no constraint is named: SQLSTATE, or its class, to a code and a detail (None: the code's own explanation).
_NUL = "text holds a character that cannot be stored"
_STATES: dict[str, tuple[str, str | None]] = {
    "08": ("unavailable", None),
    "22001": ("invalid", "a text is longer than its column"),
    "22003": ("invalid", "a number does not fit its column"),
    "22007": ("invalid", "expected an RFC 3339 time"),
    "22008": ("invalid", "a time is out of range"),
    "22009": ("invalid", "the offset of a time is out of range"),
    "22021": ("invalid", _NUL),
    "22P02": ("invalid", "a value does not have the form of its type"),
    "22P05": ("invalid", _NUL),
    "23502": ("invalid", "required, but missing"),
    "23503": ("invalid", "expected the id of something that exists"),
    "23505": ("already_exists", "a value that must be unique is taken"),
    "23514": ("invalid", "a value breaks a rule of its table"),
    "25006": ("unavailable", "The database takes no writes at the moment."),
    "25P03": ("unavailable", None),
    "40001": ("retry", None),
    "40P01": ("retry", None),
    "53": ("unavailable", None),
    "55P03": ("retry", None),
    "57": ("unavailable", None),
    "57014": ("timeout", None),
    "58": ("unavailable", None),
}

_HTTP = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


def from_exception(error: Exception) -> Problem | None:
    """Give the answer to an exception that a request raised; None for one that nobody foresaw."""
    problem = None
    match error:
        case Problem():
            problem = error
        case psycopg.Error():
            problem = from_database(error)
        case Denied():
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            problem = Problem("invalid_token", f"Not accepted: {error}.", headers=headers)
        case Exceeded():
            problem = _exceeded(error)
        case Busy() | Unavailable() | DatabaseUnavailableError() | QueueFullError():
            problem = Problem("unavailable")
        case UnreadableError():
            problem = Problem("unreadable")
        case web.HTTPException():
            problem = _from_http(error)
        case web.RequestPayloadError():
            problem = Problem("bad_request", "The body ended before its announced length, or cannot be read.")
    return problem


_LIMITS = {
    "key": "The API key's limit is used up: {} requests a minute.",
    "user": "The user's limit, of all keys and sessions together, is used up: {} requests a minute.",
    "address": "Too many attempts to authenticate from this address have failed: {} a minute may.",
}


def _exceeded(error: Exceeded) -> Problem:
    headers = {
        "Retry-After": str(error.seconds),
        "RateLimit-Policy": f'"{error.name}";q={error.quota};w=60',
        "RateLimit": f'"{error.name}";r=0;t={error.seconds}',
    }
    detail = _LIMITS[error.name].format(error.quota)
    return Problem("rate_limited", detail, headers=headers, violated=[error.name])


def from_database(error: psycopg.Error) -> Problem | None:
    """Give the answer to what PostgreSQL, the driver or the pool refused; None where the fault must be ours.

    The constraint's name decides, then the SQLSTATE (its class where the code itself is not listed).
    """
    if known := CONSTRAINTS.get(error.diag.constraint_name or ""):
        return _refused(known.code, known.detail, known.pointer)
    if isinstance(error, PoolTimeout | PoolClosed | TooManyRequests):
        return Problem("unavailable")
    state = error.sqlstate
    if state is None:
        return _from_driver(error)
    code, detail = _STATES.get(state) or _STATES.get(state[:2]) or (None, None)
    if code is None:
        return None
    pointer = f"/{_camel(error.diag.column_name)}" if error.diag.column_name else None
    return _refused(code, detail, pointer)


def _from_driver(error: psycopg.Error) -> Problem | None:
    """Answer what psycopg raises itself, without a SQLSTATE: a lost connection, a value that it cannot send."""
    match error:
        case psycopg.DataError():
            return _refused("invalid", "a value cannot be stored", None)
        case psycopg.OperationalError() | psycopg.InterfaceError():
            return Problem("unavailable")
    return None


def _refused(code: str, detail: str | None, pointer: str | None) -> Problem:
    if CODES[code].status >= 500 or detail is None:
        return Problem(code, detail)
    place = f"{pointer}: " if pointer else ""
    return Problem(code, f"{place}{detail}", errors=[FieldError(detail=detail, pointer=pointer)])


def _from_http(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem("method_not_allowed", f"This address answers {allowed}.", headers={"Allow": allowed})
    if error.status < 400:
        raise error
    return Problem(_HTTP.get(error.status, "bad_request" if error.status < 500 else "internal"))


def _camel(column: str) -> str:
    head, *rest = column.split("_")
    return head + "".join(word.capitalize() for word in rest)
