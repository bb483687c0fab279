import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crafely.auth import clerk as module
from crafely.auth.clerk import Clerk, InvalidToken, Session, Unavailable
from crafely.config import Settings, SettingsError
from tests.auth.conftest import ISSUER, PARTY, JwksServer, Signer, b64

NOW = int(time.time())


async def fault(clerk: Clerk, token: str) -> str:
    """Why the token is refused."""
    with pytest.raises(InvalidToken) as caught:
        await clerk.verify(token)
    return caught.value.code


def reassembled(token: str, **changes: str) -> str:
    header, payload, signature = token.split(".")
    parts = {"header": header, "payload": payload, "signature": signature, **changes}
    return ".".join(parts.values())


async def test_a_good_token_of_either_version_is_taken(clerk: Clerk, signer: Signer) -> None:
    assert await clerk.verify(signer.token()) == Session("user_2a", "sess_2a")
    version_1 = signer.token(drop=("v", "fva"), org_id="org_1", org_role="admin", org_permissions=["a:b"])
    assert await clerk.verify(version_1) == Session("user_2a", "sess_2a")
    assert await clerk.verify(signer.token(drop=("azp",))) == Session("user_2a", "sess_2a")
    # Within the leeway.
    assert await clerk.verify(signer.token(exp=int(time.time()) - 2, nbf=int(time.time()) + 2))


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": NOW - 60}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": -(10**40)}, "expired"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": str(NOW + 60)}, "malformed"),
        ({"nbf": str(NOW - 60)}, "malformed"),
        ({"iat": True}, "malformed"),
        ({"exp": [1]}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"exp": None}, "missing_claim"),
        ({"nbf": NOW + 3600}, "not_yet_valid"),
        ({"nbf": 10**40}, "not_yet_valid"),
        ({"nbf": {}}, "malformed"),
        ({"iat": NOW + 3600}, "not_yet_valid"),
        ({"iat": "now"}, "malformed"),
        ({"iss": ISSUER + ".evil.com"}, "wrong_issuer"),
        ({"iss": ISSUER + "/"}, "wrong_issuer"),
        ({"azp": "https://evil.com"}, "wrong_party"),
        ({"azp": [PARTY]}, "wrong_party"),
        ({"azp": ""}, "wrong_party"),
        ({"aud": "https://elsewhere.com"}, "wrong_party"),
        ({"sts": "pending"}, "pending"),
        ({"sub": ""}, "malformed"),
        ({"sub": 7}, "malformed"),
        ({"sub": "user 1"}, "malformed"),
        ({"sub": "user_1\n"}, "malformed"),
        ({"sub": "user_\0"}, "malformed"),
        ({"sub": "usér"}, "malformed"),
        ({"sub": "u" * 256}, "malformed"),
        ({"sid": 7}, "malformed"),
        ({"sid": ""}, "malformed"),
    ],
)
async def test_a_well_signed_token_with_a_wrong_claim_is_refused(
    clerk: Clerk, signer: Signer, claims: dict[str, Any], code: str
) -> None:
    assert await fault(clerk, signer.token(**claims)) == code


@pytest.mark.parametrize("claim", ["iss", "sub", "sid", "exp", "nbf", "iat"])
async def test_a_token_without_a_claim_is_refused(clerk: Clerk, signer: Signer, claim: str) -> None:
    assert await fault(clerk, signer.token(drop=(claim,))) == "missing_claim"


async def test_any_party_passes_when_none_is_configured(jwks: JwksServer, signer: Signer) -> None:
    clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_jwks_url=jwks.url))
    assert await clerk.verify(signer.token(azp="https://anywhere.example"))
    await clerk.close()


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", "RS384", "PS256", "ES256", None, 1, ["RS256"]])
async def test_another_algorithm_is_refused_before_any_key_is_fetched(
    clerk: Clerk, signer: Signer, jwks: JwksServer, alg: object
) -> None:
    header = b64({"alg": alg, "kid": signer.kid, "typ": "JWT"})
    assert await fault(clerk, reassembled(signer.token(), header=header)) == "wrong_algorithm"
    assert await fault(clerk, reassembled(signer.token(), header=header, signature="")) == "wrong_algorithm"
    assert jwks.requests == 0


@pytest.mark.parametrize("source", ["jwks", "pem"])
async def test_the_public_key_is_no_hmac_secret(clerk: Clerk, signer: Signer, source: str) -> None:
    if source == "pem":
        clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_pem=signer.pem))
    for alg in ("HS256", "RS256"):
        header = b64({"alg": alg, "kid": signer.kid, "typ": "JWT"})
        payload = signer.token().split(".")[1]
        mac = hmac.digest(signer.pem.encode(), f"{header}.{payload}".encode(), hashlib.sha256)
        expected = "wrong_algorithm" if alg == "HS256" else "bad_signature"
        assert await fault(clerk, f"{header}.{payload}.{b64(mac)}") == expected


async def test_a_token_that_was_tampered_with_is_refused(clerk: Clerk, signer: Signer, other_signer: Signer) -> None:
    token = signer.token()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert await fault(clerk, reassembled(token, payload=b64({**claims, "sub": "user_evil"}))) == "bad_signature"
    assert await fault(clerk, reassembled(token, signature=b64(b"\0" * 256))) == "bad_signature"
    assert await fault(clerk, reassembled(token, signature="")) == "bad_signature"
    # Signed by somebody else who claims our key's name, or brings a key along.
    forged = other_signer.token(headers={"kid": signer.kid, "jwk": other_signer.jwk, "jku": "http://127.0.0.1:1/"})
    assert await fault(clerk, forged) == "bad_signature"


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "null", "Bearer x", "\0", "é", "\ud800", "x" * 8193, "x" * 10_000_000]
    + [f"{b64(header)}.{b64(b'{}')}.{b64(b'x')}" for header in (b"[]", b"null", b"1", b"{", b"\xff", b"[" * 5000)]
    + [f"{b64({'alg': 'RS256', **extra})}.{b64(b'{}')}.{b64(b'x')}" for extra in ({}, {"kid": 1}, {"kid": None})]
    + [f"{b64({'alg': 'RS256', 'kid': 'x', 'crit': crit})}.{b64(b'{}')}.{b64(b'x')}" for crit in ([], ["exp"], 1)]
    + [f"{b64({'alg': 'RS256', 'kid': 'x', 'crit': ['b64'], 'b64': False})}..{b64(b'x')}x"],
)
async def test_garbage_is_malformed_and_causes_no_request(clerk: Clerk, jwks: JwksServer, token: str) -> None:
    assert await fault(clerk, token) == "malformed"
    assert jwks.requests == 0


async def test_a_well_signed_payload_that_is_no_object_is_malformed(clerk: Clerk, signer: Signer) -> None:
    for payload in (b"[]", b"1", b"\xff", b"{", b"[" * 5000):
        token = jwt.PyJWS().encode(payload, signer.private, algorithm="RS256", headers={"kid": signer.kid})
        assert await fault(clerk, token) == "malformed"


async def test_a_good_token_that_is_too_long_is_refused(clerk: Clerk, signer: Signer) -> None:
    assert await clerk.verify(signer.token(extra="x" * 4000))
    assert await fault(clerk, signer.token(extra="x" * 8192)) == "malformed"


@given(header=st.binary(max_size=50), payload=st.binary(max_size=50), signature=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
async def test_no_bytes_are_taken_or_break_it(signer: Signer, header: bytes, payload: bytes, signature: bytes) -> None:
    clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_pem=signer.pem))
    good = b64({"alg": "RS256"})
    for first in (b64(header), good):
        assert await fault(clerk, f"{first}.{b64(payload)}.{b64(signature)}")


async def test_a_pem_needs_no_network(signer: Signer, other_signer: Signer, jwks: JwksServer) -> None:
    # As in an environment file, and with a kid that a PEM cannot know.
    pem = signer.pem.replace("\n", "\\n")
    clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_pem=pem, clerk_jwks_url=jwks.url))
    assert await clerk.verify(signer.token(headers={"kid": "whatever"})) == Session("user_2a", "sess_2a")
    assert await fault(clerk, other_signer.token()) == "bad_signature"
    assert jwks.requests == 0
    await clerk.close()


async def test_without_an_issuer_every_token_is_refused(signer: Signer) -> None:
    clerk = Clerk(Settings())
    assert await fault(clerk, signer.token()) == "not_configured"
    assert await fault(clerk, "") == "not_configured"
    await clerk.close()


async def test_the_default_url_is_the_issuers(jwks: JwksServer, signer: Signer) -> None:
    issuer = jwks.url.removesuffix("/.well-known/jwks.json")
    clerk = Clerk(Settings(clerk_issuer=issuer + "/"))
    assert await clerk.verify(signer.token(iss=issuer)) == Session("user_2a", "sess_2a")
    await clerk.close()


def _pem(key: Any) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return str(public.decode())


def test_settings_that_do_not_fit_are_named(signer: Signer) -> None:
    private = signer.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    for bad in ("x", private, _pem(ec.generate_private_key(ec.SECP256R1())), Signer("weak", bits=1024).pem):
        with pytest.raises(SettingsError, match="CRAFELY_CLERK_PEM: an RSA public key") as caught:
            Clerk(Settings(clerk_issuer=ISSUER, clerk_pem=bad))
        assert bad not in str(caught.value) or bad == "x"
    for url in ("http://clerk.example.com", "clerk.example.com", "ftp://127.0.0.1", "https://"):
        with pytest.raises(SettingsError, match="CRAFELY_CLERK_ISSUER: an https"):
            Clerk(Settings(clerk_issuer=url))
        with pytest.raises(SettingsError, match="CRAFELY_CLERK_JWKS_URL: an https"):
            Clerk(Settings(clerk_issuer=ISSUER, clerk_jwks_url=url))
    for alone in (Settings(clerk_pem=signer.pem), Settings(clerk_jwks_url="https://clerk.example.com/jwks")):
        with pytest.raises(SettingsError, match="CRAFELY_CLERK_ISSUER: needed"):
            Clerk(alone)


async def test_keys_are_fetched_once_for_all(clerk: Clerk, jwks: JwksServer, signer: Signer) -> None:
    tokens = [signer.token(sub=f"user_{n}") for n in range(100)]
    sessions = await asyncio.gather(*map(clerk.verify, tokens))
    assert [session.user_id for session in sessions] == [f"user_{n}" for n in range(100)]
    await clerk.verify(signer.token())
    assert jwks.requests == 1


async def test_a_storm_of_invented_kids_causes_one_request_an_interval(
    clerk: Clerk, jwks: JwksServer, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await clerk.verify(signer.token())
    forged = [signer.token(headers={"kid": f"ins_{n}"}) for n in range(100)]
    for _ in range(2):
        assert await asyncio.gather(*(fault(clerk, token) for token in forged)) == ["unknown_key"] * 100
    assert jwks.requests == 1
    monkeypatch.setattr(module, "REFETCH_INTERVAL", 0.0)
    assert await asyncio.gather(*(fault(clerk, token) for token in forged)) == ["unknown_key"] * 100
    assert jwks.requests == 2


async def test_a_new_key_is_found_and_the_old_one_ends(
    clerk: Clerk, jwks: JwksServer, signer: Signer, other_signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await clerk.verify(signer.token())
    jwks.signers = [other_signer]
    assert await fault(clerk, other_signer.token()) == "unknown_key"
    monkeypatch.setattr(module, "REFETCH_INTERVAL", 0.0)
    await clerk.verify(other_signer.token())
    assert jwks.requests == 2
    assert await fault(clerk, signer.token()) == "unknown_key"


async def test_a_known_key_is_looked_up_again_in_the_background(
    clerk: Clerk, jwks: JwksServer, signer: Signer, other_signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await clerk.verify(signer.token())
    jwks.signers = [other_signer]
    monkeypatch.setattr(module, "REFETCH_INTERVAL", 0.0)
    monkeypatch.setattr(module, "FRESH", 0.0)
    # Answered with what is known, at once; the lookup that it started takes the key away.
    await clerk.verify(signer.token())
    monkeypatch.setattr(module, "FRESH", 3600.0)
    fetching = clerk._keys._fetching  # type: ignore[union-attr] # a Clerk with a URL has this kind of keys
    assert fetching is not None
    await fetching
    assert await fault(clerk, signer.token()) == "unknown_key"


# Answers to refuse. The first four hold good keys: it is the way they come that is wrong.
BROKEN: list[Callable[[list[Any]], web.Response]] = [
    lambda good: web.json_response({"keys": good}, status=500),
    lambda _: web.Response(status=302, headers={"Location": "/elsewhere"}),
    lambda good: web.json_response({"keys": good, "padding": " " * 64 * 1024}),
    lambda good: web.json_response({"keys": good * 33}),
    lambda _: web.Response(body=b""),
    lambda _: web.Response(body=b"\xff"),
    lambda _: web.Response(text="[" * 50_000),
    lambda _: web.json_response([]),
    lambda _: web.json_response({"keys": []}),
    lambda _: web.json_response({"keys": None}),
    lambda _: web.json_response({"keys": [{"kty": "RSA", "kid": "x"}]}),
    lambda _: web.json_response({"keys": [{"kty": "RSA", "kid": "x", "n": "!", "e": "AQAB"}]}),
    lambda _: web.json_response({"keys": [{"kty": "RSA", "kid": "x", "n": "", "e": ""}]}),
    lambda _: web.json_response({"keys": [{"kty": "RSA", "kid": "x", "n": "AA", "e": "AA"}]}),
    lambda _: web.json_response({"keys": [{"kty": "RSA", "kid": "x", "n": 7, "e": 7}]}),
    lambda _: web.json_response({"keys": [{"kty": "oct", "kid": "ins_a", "k": "c2VjcmV0"}]}),
]


@pytest.mark.parametrize("broken", BROKEN)
async def test_an_endpoint_that_fails_leaves_the_old_keys_and_says_unavailable_for_new_ones(
    clerk: Clerk,
    jwks: JwksServer,
    signer: Signer,
    other_signer: Signer,
    broken: Callable[[list[Any]], web.Response],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "REFETCH_INTERVAL", 0.0)
    answer = jwks.answer = lambda: broken([signer.jwk, other_signer.jwk])
    with pytest.raises(Unavailable):
        await clerk.verify(signer.token())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert jwks.url in record.getMessage()
    jwks.answer = None
    await clerk.verify(signer.token())
    jwks.answer = answer
    with pytest.raises(Unavailable):
        await clerk.verify(other_signer.token())
    await clerk.verify(signer.token())
    jwks.answer = None
    jwks.signers = [signer, other_signer]
    await clerk.verify(other_signer.token())


async def test_a_closed_port_is_unavailable_and_asked_once_an_interval(
    signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_jwks_url=f"http://127.0.0.1:{port}/jwks"))
    results = await asyncio.gather(*(clerk.verify(signer.token()) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    with pytest.raises(Unavailable):
        await clerk.verify(signer.token())
    assert len(caplog.records) == 1
    await clerk.close()


async def test_an_endpoint_that_never_answers_is_given_up(
    signer: Signer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _reader, writer: held.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr(module, "FETCH_TIMEOUT", 0.1)
    clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_jwks_url=f"http://127.0.0.1:{port}/jwks"))
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await clerk.verify(signer.token())
    assert "TimeoutError" in caplog.text
    await clerk.close()
    for writer in held:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_one_waiter_going_away_does_not_disturb_the_others(
    clerk: Clerk, jwks: JwksServer, signer: Signer
) -> None:
    tasks = [asyncio.create_task(clerk.verify(signer.token())) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [Session("user_2a", "sess_2a")] * 2
    assert jwks.requests == 1


async def test_closing_while_a_fetch_runs(clerk: Clerk, signer: Signer) -> None:
    task = asyncio.create_task(clerk.verify(signer.token()))
    await asyncio.sleep(0)
    await clerk.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_only_usable_keys_are_kept(clerk: Clerk, jwks: JwksServer, signer: Signer, other_signer: Signer) -> None:
    weak = Signer("weak", bits=1024)
    unusable = [
        weak.jwk,
        {**other_signer.jwk, "use": "enc", "kid": "enc"},
        {**other_signer.jwk, "alg": "PS256", "kid": "pss"},
        {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
        {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"},
        {name: value for name, value in other_signer.jwk.items() if name != "kid"},
    ]
    plain = {name: value for name, value in signer.jwk.items() if name not in {"use", "alg"}}
    document = json.dumps({"keys": [*unusable, plain], "more": 1})
    jwks.answer = lambda: web.Response(text=document)
    await clerk.verify(signer.token())
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = weak.token()
    assert await fault(clerk, token) == "unknown_key"
    for kid in ("enc", "pss", "oct", "ec", ""):
        assert await fault(clerk, other_signer.token(headers={"kid": kid})) == "unknown_key"
