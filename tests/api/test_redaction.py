"""What looks like a secret is blotted out, wherever it stands in a text, and the rest stays."""

import io
import json
import logging

import pytest

from crafely.api.problems import Problem, invalid
from crafely.api.redaction import redacted
from tests.api.conftest import lines

KEY = "crf_live_0123456789abcdef_0123456789abcdefABCDEF0123456789abcdef"
HASH = "$argon2id$v=19$m=8192,t=1,p=1$c29tZXNhbHQ$aGFzaG9mYXNlY3JldA/x+y"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2VyXzEifQ.c2ln-bmF0_dXJl"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"the key {KEY}.", "the key (secret)."),
        # Percent-encoded, or without anything between.
        (f"key%3D{KEY}x", "key%3D(secret)"),
        (f"Failing row contains (key_1, {HASH}, null).", "Failing row contains (key_1, (secret), null)."),
        (f"Bearer {TOKEN}", "Bearer (secret)"),
        ("postgresql://me:p%40ss@host/db", "postgresql://(secret)@host/db"),
        ("host=a password=hunter2 dbname=b", "host=a password=(secret) dbname=b"),
        (r"host=a password='hun\'ter 2' dbname=b", "host=a password=(secret) dbname=b"),
        ("sslpassword=x", "sslpassword=(secret)"),
        (
            "postgresql://me@host/db and http://127.0.0.1:8000/v1",
            "postgresql://me@host/db and http://127.0.0.1:8000/v1",
        ),
        ("crf_live or an eyJ, $argon2 and a password", "crf_live or an eyJ, $argon2 and a password"),
    ],
)
def test_secrets_go_and_the_rest_stays(text: str, left: str) -> None:
    assert redacted(text) == left


def test_an_exception_that_holds_every_secret_is_logged_without_them(log: io.StringIO) -> None:
    text = f"{KEY}\n{HASH}\n{TOKEN}\npostgresql://me:hunter2@host/db"
    logging.getLogger("crafely").error("failed: %s", text, exc_info=RuntimeError(text))
    [said] = lines(log)
    assert "RuntimeError" in said["exception"]
    assert [one for one in (KEY, HASH, TOKEN, "hunter2") if one in log.getvalue()] == []
    assert said["message"].count("(secret)") == 4


def test_a_problem_repeats_no_secret_in_any_of_its_parts() -> None:
    for problem in (
        invalid("no such parameter", parameter=KEY),
        invalid(f"not {TOKEN}", pointer=f"/{KEY}"),
        Problem("unavailable", f"not {HASH}"),
    ):
        body = problem.body("request-1").decode()
        assert "(secret)" in body
        assert [one for one in (KEY, HASH, TOKEN) if one in body] == []
        assert json.loads(body)["requestId"] == "request-1"
