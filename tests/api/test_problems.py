"""Which exception gets which answer. What PostgreSQL really raises is tested where the statements are."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from aiohttp import web
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from crafely.api.problems import CODES, CONSTRAINTS, MAX_ERRORS, FieldError, Problem, from_exception, invalid
from crafely.auth import Denied
from crafely.auth.clerk import Unavailable
from crafely.auth.hashing import Busy
from crafely.db.session import DatabaseUnavailableError

MIGRATIONS = Path(__file__).parents[2] / "migrations"


def database_error(kind: type[psycopg.Error], **diagnostics: str) -> psycopg.Error:
    """An error as the driver raises it, with what the server said in its diagnostics."""
    fields = {"constraint_name": None, "column_name": None, **diagnostics}

    class WithDiagnostics(kind):  # type: ignore[misc,valid-type]  # the class is a parameter
        diag = SimpleNamespace(**fields)

    error: psycopg.Error = WithDiagnostics("the value 4711 is bad")
    return error


def test_a_problem_is_rfc_9457() -> None:
    problem = Problem("invalid", "Two values.", errors=[FieldError(detail="a", pointer="/x")], headers={"X": "y"})
    assert json.loads(problem.body("r1")) == {
        "type": "/docs#problem-invalid",
        "title": "Invalid value",
        "status": 422,
        "code": "invalid",
        "detail": "Two values.",
        "requestId": "r1",
        "errors": [{"detail": "a", "pointer": "/x"}],
    }
    assert problem.headers == {"X": "y"}


def test_an_unknown_code_fails_at_once() -> None:
    with pytest.raises(KeyError):
        Problem("no_such_code")


def test_errors_are_bounded() -> None:
    assert len(Problem("invalid", errors=[FieldError(detail="x")] * 1000).errors) == MAX_ERRORS


def test_statuses_bring_their_headers() -> None:
    assert Problem("unauthenticated").headers == {"WWW-Authenticate": "Bearer"}
    assert Problem("unavailable").headers == {"Retry-After": "1"}
    assert Problem("unavailable", headers={"Retry-After": "30"}).headers == {"Retry-After": "30"}


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code: str) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
    assert 400 <= CODES[code].status < 600
    assert CODES[code].title
    assert CODES[code].explanation.endswith(".")


def test_invalid_says_where() -> None:
    assert invalid("too long", pointer="/a").detail == "/a: too long"
    assert invalid("too long", parameter="take").detail == "parameter take: too long"
    assert invalid("too long", pointer="").detail == "body: too long"


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_constraint_of_the_table_is_one_of_the_schema(name: str) -> None:
    assert any(name in path.read_text() for path in MIGRATIONS.glob("*.sql"))
    assert CONSTRAINTS[name].code in CODES


@pytest.mark.parametrize(
    ("error", "status", "code", "pointer"),
    [
        (database_error(errors.UniqueViolation, constraint_name="packages_name_key"), 409, "already_exists", "/name"),
        (
            database_error(errors.UniqueViolation, constraint_name="user_subscriptions_user_id_package_id_idx"),
            409,
            "already_subscribed",
            "/packageId",
        ),
        (
            database_error(errors.ForeignKeyViolation, constraint_name="threads_user_id_agent_id_fkey"),
            422,
            "invalid",
            "/agentId",
        ),
        (database_error(errors.CheckViolation, constraint_name="usage_tokens_in_check"), 422, "invalid", "/tokensIn"),
        (database_error(errors.UniqueViolation, constraint_name="of_tomorrow_key"), 409, "already_exists", None),
        (database_error(errors.NotNullViolation, column_name="hashed_key"), 422, "invalid", "/hashedKey"),
        (database_error(errors.UntranslatableCharacter), 422, "invalid", None),
        (database_error(errors.CharacterNotInRepertoire), 422, "invalid", None),
        (database_error(errors.NumericValueOutOfRange), 422, "invalid", None),
        (psycopg.DataError("cannot hold NUL"), 422, "invalid", None),
    ],
)
def test_what_the_client_can_mend(error: Exception, status: int, code: str, pointer: str | None) -> None:
    problem = from_exception(error)
    assert problem is not None
    assert (problem.status, problem.code, problem.errors[0].pointer) == (status, code, pointer)
    assert b"4711" not in problem.body("r")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (psycopg.OperationalError("connection refused"), "unavailable"),
        (psycopg.InterfaceError("the connection is closed"), "unavailable"),
        (PoolTimeout("5 s"), "unavailable"),
        (PoolClosed(), "unavailable"),
        (TooManyRequests(), "unavailable"),
        (database_error(errors.AdminShutdown), "unavailable"),
        (database_error(errors.CannotConnectNow), "unavailable"),
        (database_error(errors.ConnectionFailure), "unavailable"),
        (database_error(errors.DiskFull), "unavailable"),
        (database_error(errors.IoError), "unavailable"),
        (database_error(errors.IdleInTransactionSessionTimeout), "unavailable"),
        (database_error(errors.DatabaseDropped), "unavailable"),
        (database_error(errors.TooManyConnections), "unavailable"),
        (database_error(errors.ReadOnlySqlTransaction), "unavailable"),
        (database_error(errors.SerializationFailure), "retry"),
        (database_error(errors.DeadlockDetected), "retry"),
        (database_error(errors.LockNotAvailable), "retry"),
        (database_error(errors.QueryCanceled), "timeout"),
        (DatabaseUnavailableError("away"), "unavailable"),
        (Busy("queue full"), "unavailable"),
        (Unavailable("no keys"), "unavailable"),
    ],
)
def test_what_passes_by_itself_is_503_with_retry_after(error: Exception, code: str) -> None:
    problem = from_exception(error)
    assert problem is not None
    assert (problem.status, problem.code, problem.headers["Retry-After"]) == (503, code, "1")
    assert problem.errors == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("?"),
        psycopg.ProgrammingError("?"),
        database_error(errors.UndefinedTable),
        database_error(errors.InsufficientPrivilege),
        database_error(errors.DivisionByZero),
    ],
)
def test_a_fault_of_ours_has_no_answer_of_its_own(error: Exception) -> None:
    assert from_exception(error) is None


def test_a_refused_token_says_why() -> None:
    problem = from_exception(Denied("EXPIRED"))
    assert problem is not None
    assert (problem.status, problem.code) == (401, "invalid_token")
    assert "expired" in problem.detail
    assert problem.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (web.HTTPNotFound(), 404),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413),
        (web.HTTPExpectationFailed(), 400),
        (web.HTTPInternalServerError(), 500),
        (web.RequestPayloadError("cut off"), 400),
    ],
)
def test_what_aiohttp_raises(error: Exception, status: int) -> None:
    problem = from_exception(error)
    assert problem is not None
    assert problem.status == status


def test_a_redirect_is_no_problem() -> None:
    with pytest.raises(web.HTTPFound):
        from_exception(web.HTTPFound("/"))


def test_a_problem_is_itself() -> None:
    problem: Any = Problem("not_found")
    assert from_exception(problem) is problem
