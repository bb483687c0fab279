"""Who is calling: every way to say so, and every way to be refused."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crafely.auth import keys
from tests.api.conftest import ROOT, Api
from tests.auth.conftest import Signer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_key_says_whose_it_is_and_what_it_may_do(api: Api) -> None:
    caller = await api.server.caller(api.alice.user, "agents:read", "usage:write")
    me = await caller.get("/v1/me")
    assert me["userId"] == api.alice.user
    assert me["permissions"] == ["agents:read", "usage:write"]
    assert me["apiKeyId"].startswith("key_")
    assert me["sessionId"] is None


async def test_a_key_is_taken_from_x_api_key_too(api: Api) -> None:
    me = await api.anonymous.request("GET", "/v1/me", expect=200, headers={"X-API-Key": api.bob.token})
    assert me["userId"] == api.bob.user


async def test_a_session_token_holds_everything_but_admin(api: Api) -> None:
    alice = api.server.signed_in("alice")
    me = await alice.get("/v1/me")
    assert me.body == {"userId": "alice", "permissions": ["*"], "apiKeyId": None, "sessionId": "sess_2a"}
    await alice.get("/v1/usage/daily-by-user", expect=403)


async def test_a_session_token_of_a_named_administrator_holds_admin(api: Api) -> None:
    root = api.server.signed_in(ROOT)
    assert (await root.get("/v1/me"))["permissions"] == ["*", "admin"]
    await root.get("/v1/usage/daily-by-user")


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, "expired"),
        ({"nbf": 4102444800}, "not valid yet"),
        ({"iss": "https://elsewhere.example.com"}, "another issuer"),
        ({"azp": "https://elsewhere.example.com"}, "another site"),
        ({"sts": "pending"}, "tasks left"),
    ],
)
async def test_a_session_token_that_is_wrong_in_one_claim_is_refused(
    api: Api, claims: dict[str, Any], reason: str
) -> None:
    refused = await api.server.signed_in("alice", **claims).get("/v1/me", expect=401)
    assert refused["code"] == "invalid_token"
    assert reason in refused["detail"]


async def test_a_session_token_that_somebody_else_signed_is_refused(api: Api) -> None:
    forged = api.server.with_token(Signer("ins_a").token(sub=ROOT))
    assert "signature is wrong" in (await forged.get("/v1/me", expect=401))["detail"]


async def test_a_revoked_key_is_refused_at_once(api: Api) -> None:
    caller = await api.server.caller(api.alice.user, "*")
    me = await caller.get("/v1/me")
    await caller.delete(f"/v1/api-keys/{me['apiKeyId']}")
    refused = await caller.get("/v1/me", expect=401)
    assert refused["code"] == "invalid_token"
    assert "revoked" in refused["detail"]
    assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


async def test_an_expired_key_is_refused(api: Api) -> None:
    """A key that was remembered before its end came is in test_verify.py: it has to wait for the end."""
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = await api.alice.post("/v1/api-keys", {"permissions": ["*"], "expiresAt": soon})
    # The API takes no time that is past, so the clock is put forward in the row.
    api.server.sql("update api_keys set expires_at = now() where id = %s", made["id"])
    refused = await api.server.with_token(made["key"]).get("/v1/me", expect=401)
    assert "expired" in refused["detail"]


async def test_the_right_id_with_a_wrong_secret_is_no_key(api: Api) -> None:
    parsed = keys.parse(api.alice.token)
    assert parsed is not None
    body = f"crf_test_{parsed.key_id}_{'x' * 32}"
    refused = await api.server.with_token(body + keys._crc(body)).get("/v1/me", expect=401)
    assert "no such API key" in refused["detail"]


async def test_without_credentials_the_answer_says_how_to_send_them(api: Api) -> None:
    refused = await api.anonymous.get("/v1/me", expect=401)
    assert refused["code"] == "unauthenticated"
    assert refused.headers["WWW-Authenticate"] == "Bearer"
