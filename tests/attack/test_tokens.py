"""Tokens that are forged, borrowed, expired or mistaken for another kind: 401, whatever they claim to be."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from crafely.api import ROUTES
from crafely.auth import keys
from tests.api.conftest import serving
from tests.attack import report
from tests.attack.conftest import World
from tests.auth.conftest import ISSUER, PARTY, Signer, b64

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = int(time.time())
ROOT = "user_root"
CLAIMS: dict[str, Any] = {
    "azp": PARTY,
    "exp": NOW + 3600,
    "iat": NOW,
    "iss": ISSUER,
    "nbf": NOW - 10,
    "sid": "sess_1",
    "sub": ROOT,
}
OTHER = Signer("ins_a")
GOOD = {"alg": "RS256", "typ": "JWT", "kid": "ins_a"}
PATHS = sorted({route.path for route in ROUTES if route.permission is not None and "{" not in route.path})


def joined(header: Any, payload: Any, signature: bytes = b"") -> str:
    return f"{b64(header)}.{b64(payload)}.{b64(signature)}"


def hmac_signed(signer: Signer, secret: bytes, algorithm: str = "HS256", **header: Any) -> str:
    """A token whose signature is an HMAC: with what everybody knows, if the server took the public key for a secret."""
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    body = f"{b64({**GOOD, 'alg': algorithm, **header})}.{b64(CLAIMS)}"
    return f"{body}.{b64(hmac.new(secret, body.encode(), digest).digest())}"


def der(signer: Signer) -> bytes:
    public = signer.private.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def cut(token: str, part: int, change: Callable[[str], str]) -> str:
    parts = token.split(".")
    parts[part] = change(parts[part])
    return ".".join(parts)


# Each makes a token from the signer whose public key the server has.
FORGED: dict[str, Callable[[Signer], str]] = {
    "alg none": lambda _: joined({**GOOD, "alg": "none"}, CLAIMS),
    "alg None": lambda _: joined({**GOOD, "alg": "None"}, CLAIMS),
    "alg NONE, with a signature": lambda _: joined({**GOOD, "alg": "NONE"}, CLAIMS, b"x" * 256),
    "alg missing": lambda _: joined({"typ": "JWT", "kid": "ins_a"}, CLAIMS),
    "alg null": lambda _: joined({**GOOD, "alg": None}, CLAIMS),
    "alg in a list": lambda _: joined({**GOOD, "alg": ["RS256"]}, CLAIMS),
    "alg in small letters": lambda signer: jwt_header(signer, alg="rs256"),
    "alg empty": lambda _: joined({**GOOD, "alg": ""}, CLAIMS),
    "HS256 with the public key (PEM)": lambda signer: hmac_signed(signer, signer.pem.encode()),
    "HS256 with the public key (PEM, no line end)": lambda signer: hmac_signed(signer, signer.pem.strip().encode()),
    "HS256 with the public key (DER)": lambda signer: hmac_signed(signer, der(signer)),
    "HS384 with the public key": lambda signer: hmac_signed(signer, signer.pem.encode(), "HS384"),
    "HS512 with the public key": lambda signer: hmac_signed(signer, signer.pem.encode(), "HS512"),
    "HS256 with nothing": lambda signer: hmac_signed(signer, b""),
    "HS256 with the modulus": lambda signer: hmac_signed(signer, signer.jwk["n"].encode()),
    "HS256 that says RS256": lambda signer: hmac_signed(signer, signer.pem.encode()).replace(
        b64({**GOOD, "alg": "HS256"}), b64(GOOD)
    ),
    "another key": lambda _: OTHER.token(**CLAIMS),
    "another key, brought along as jwk": lambda _: OTHER.token(headers={"jwk": OTHER.jwk}, **CLAIMS),
    "another key, behind jku": lambda _: OTHER.token(headers={"jku": "http://127.0.0.1:9/jwks.json"}, **CLAIMS),
    "another key, behind x5u": lambda _: OTHER.token(headers={"x5u": "http://127.0.0.1:9/cert.pem"}, **CLAIMS),
    "another key, as x5c": lambda _: OTHER.token(headers={"x5c": [base64.b64encode(der(OTHER)).decode()]}, **CLAIMS),
    "critical header": lambda _: OTHER.token(headers={"crit": ["exp"], "exp": NOW}, **CLAIMS),
    "ES256": lambda _: jwt.encode(CLAIMS, ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "ins_a"}),
    "PS256 by the right key": lambda signer: jwt.encode(CLAIMS, signer.private, "PS256", headers={"kid": "ins_a"}),
    "RS384 by the right key": lambda signer: jwt.encode(CLAIMS, signer.private, "RS384", headers={"kid": "ins_a"}),
    "no signature": lambda signer: cut(signer.token(**CLAIMS), 2, lambda _: ""),
    "a signature with one bit flipped": lambda signer: cut(signer.token(**CLAIMS), 2, flipped),
    "a signature of zeros": lambda _: joined(GOOD, CLAIMS, bytes(256)),
    "a signature of one": lambda _: joined(GOOD, CLAIMS, bytes(255) + b"\1"),
    "another subject under a good signature": lambda signer: cut(signer.token(sub="mallory"), 1, lambda _: b64(CLAIMS)),
    "two signatures": lambda signer: signer.token(**CLAIMS) + "." + "x" * 8,
    "a part too few": lambda signer: signer.token(**CLAIMS).rpartition(".")[0],
    "JSON serialization": lambda _: json.dumps({"payload": b64(CLAIMS), "signatures": []}),
    "a signed token of bytes": lambda signer: jwt.api_jws.encode(b"[]", signer.private, "RS256"),
    "deflated": lambda signer: jwt_header(signer, zip="DEF", alg="none"),
}
# Well signed by the right key, and wrong all the same: a claim, and what it is.
CLAIMED: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 60},
    "expired, as a text": {"exp": str(NOW + 60)},
    "expires at infinity": {"exp": float("inf")},
    "no end": {"exp": None},
    "not yet valid": {"nbf": NOW + 3600},
    "issued in the future": {"iat": NOW + 3600},
    "another issuer": {"iss": "https://clerk.example.org"},
    "issuer with a slash": {"iss": f"{ISSUER}/"},
    "issuer in capitals": {"iss": ISSUER.upper()},
    "issuer with a user": {"iss": ISSUER.replace("//", "//clerk.example.com@")},
    "issuer in a list": {"iss": [ISSUER, "x"]},
    "issuer with look-alikes": {"iss": ISSUER.replace("a", "\u0430")},
    "another party": {"azp": "https://evil.example.com"},
    "party with a suffix": {"azp": f"{PARTY}.evil.example.com"},
    "party in a list": {"azp": [PARTY]},
    "an audience": {"aud": "another service"},
    "pending": {"sts": "pending"},
    "no session": {"sid": ""},
    "session in a list": {"sid": ["sess_1"]},
    "no subject": {"sub": ""},
    "subject in a list": {"sub": [ROOT]},
    "subject a number": {"sub": 1},
    "subject with a line end": {"sub": f"{ROOT}\n"},
    "subject with a nul": {"sub": f"{ROOT}\0"},
    "subject with an accent": {"sub": "us\u00e9r"},
    "subject too long": {"sub": "x" * 256},
}
# The kid names no file, no address and no statement: it is looked up among the keys that there are.
KIDS = [
    "../../../../dev/null",
    "/dev/null",
    "http://127.0.0.1:9/",
    "' union select 'x' --",
    "ins_b",
    "",
    "ins_a\0",
    "x" * 4000,
]


def jwt_header(signer: Signer, **header: Any) -> str:
    signed = signer.token(**CLAIMS)
    return cut(signed, 0, lambda _: b64({**GOOD, **header}))


def flipped(signature: str) -> str:
    return ("A" if signature[0] != "A" else "B") + signature[1:]


async def refused(world: World, attack: str, token: str) -> None:
    for headers in ({"Authorization": f"Bearer {token}"}, {"X-API-Key": token}):
        if any(ord(letter) < 32 or ord(letter) > 126 for letter in token):
            continue
        answer = await world.strike(attack, "GET", "/v1/me", by=None, headers=headers, expect=[401])
        assert answer["code"] in {"invalid_token", "unauthenticated"}
        assert token[:40] not in answer["detail"]


async def test_the_token_that_they_all_imitate_is_good(world: World) -> None:
    me = await world.server.with_token(world.server.signer.token(**CLAIMS)).get("/v1/me")
    assert (me["userId"], me["permissions"]) == (ROOT, ["*", "admin"])


@pytest.mark.parametrize("name", FORGED)
async def test_a_forged_token_is_refused(world: World, name: str) -> None:
    await refused(world, "forged session tokens", FORGED[name](world.server.signer))


@pytest.mark.parametrize("claims", CLAIMED.values(), ids=CLAIMED)
async def test_a_well_signed_token_with_a_wrong_claim_is_refused(world: World, claims: dict[str, Any]) -> None:
    # PyJWT would not sign all of them.
    payload = json.dumps({**CLAIMS, **claims}).encode()
    signed = jwt.api_jws.encode(payload, world.server.signer.private, "RS256", headers=GOOD)
    await refused(world, "wrong claims", signed)


@pytest.mark.parametrize("kid", KIDS)
async def test_a_kid_leads_nowhere(world: World, kid: str) -> None:
    await refused(world, "kid tricks", OTHER.token(headers={"kid": kid}, **CLAIMS))


@pytest.mark.parametrize("subjects", [("mallory", ROOT), (ROOT, "mallory")])
async def test_a_claim_that_stands_twice_is_worth_what_its_signature_is(
    world: World, subjects: tuple[str, str]
) -> None:
    twice = "".join(f'"sub":"{subject}",' for subject in subjects)
    payload = b64(("{" + twice + json.dumps(CLAIMS)[1:]).encode())
    await refused(world, "claims twice", f"{b64(GOOD)}.{payload}.{b64(bytes(256))}")
    signature = world.server.signer.token(sub="mallory").rpartition(".")[2]
    await refused(world, "claims twice", f"{b64(GOOD)}.{payload}.{signature}")


@pytest.mark.parametrize("path", PATHS)
async def test_every_route_refuses_them(world: World, path: str) -> None:
    methods = [route.method for route in ROUTES if route.path == path]
    for method in methods:
        for token in (
            FORGED["alg none"](world.server.signer),
            FORGED["HS256 with the public key (PEM)"](world.server.signer),
        ):
            client = world.server.with_token(token)
            await world.strike("forged, on every route", method, path, by=client, expect=[401], json={})


def keys_like(token: str) -> dict[str, str]:
    """What is nearly the key that is given."""
    _, environment, key_id, secret = token.split("_")
    secret = secret[: keys.SECRET_LENGTH]
    return {
        "another secret": keys.token(environment, key_id, secret[::-1]),
        "another id": keys.token(environment, key_id[::-1], secret),
        "in capitals": token.upper(),
        "with other case": token.swapcase(),
        "with a letter more": token + "0",
        "with a letter less": token[:-1],
        "with a checksum of zeros": token[:-6] + "000000",
        "with a nul": token + "%00",
        "with a comment": token + "--",
        "twice": token + token,
        "id and secret swapped": f"crf_{environment}_{secret}_{key_id}",
        "the id alone": key_id,
        "the secret alone": secret,
        "quoted": f'"{token}"',
        "in base64": base64.b64encode(token.encode()).decode(),
        "a pattern": keys.token(environment, "%" * 16, secret),
        "of underscores": keys.token(environment, "_" * 16, secret),
    }


async def test_what_is_nearly_a_key_is_none(world: World) -> None:
    for token in keys_like(world.victim.token).values():
        await refused(world, "nearly the victim's key", token)
    # The environment is a word for people, and nothing trusts it: the secret alone decides.
    hashed = world.server.sql("select hashed_key from api_keys where user_id = 'victim' limit 1")[0][0]
    await refused(world, "nearly the victim's key", hashed)


async def test_a_revoked_or_expired_key_opens_nothing(world: World) -> None:
    ended = await world.server.caller("mallory", "*")
    me = await ended.get("/v1/me")
    await world.mallory.delete(f"/v1/api-keys/{me['apiKeyId']}")
    await refused(world, "ended keys", ended.token)
    await world.strike("ended keys", "PATCH", f"/v1/api-keys/{me['apiKeyId']}", by=ended, expect=[401], json={})
    late = await world.server.caller("mallory", "*")
    world.server.sql(
        "update api_keys set expires_at = now() - interval '1 s' where key_id = %s", late.token.split("_")[2]
    )
    await refused(world, "ended keys", late.token)


async def test_credentials_in_other_places_are_none(world: World) -> None:
    token = world.mallory.token
    for query in (f"access_token={token}", f"key={token}", f"api_key={token}"):
        await world.strike("credentials elsewhere", "GET", f"/v1/me?{query}", by=None, expect=[401])
    for headers in (
        {"Cookie": f"__session={world.server.signer.token()}"},
        {"Authorization": f"Basic {base64.b64encode(f'x:{token}'.encode()).decode()}"},
        {"Authorization": f"Token {token}"},
        {"Authorization": token},
        {"Proxy-Authorization": f"Bearer {token}"},
        {"X-Forwarded-Authorization": f"Bearer {token}"},
        {"X-User-Id": "victim", "X-Forwarded-User": "victim", "Remote-User": "victim"},
    ):
        await world.strike("credentials elsewhere", "GET", "/v1/me", by=None, headers=headers, expect=[401])
    claimed = {
        "X-User-Id": "victim",
        "X-Forwarded-User": "victim",
        "Remote-User": "victim",
        "crafely.user_id": "victim",
    }
    me = await world.strike("credentials elsewhere", "GET", "/v1/me", by=world.mallory, headers=claimed, expect=[200])
    assert me["userId"] == "mallory"


async def test_guessing_ends_whatever_a_client_says_of_its_address(world: World) -> None:
    """Sixty tries are five here. Who holds a key that is known to be good is let in from the same address."""
    async with serving(world.server.url, world.server.signer, rate_limit_failures=5) as server:
        good = server.with_token(world.mallory.token)
        await good.get("/v1/me")
        answers = []
        for number in range(20):
            claimed = f"192.0.2.{number}"
            headers = dict.fromkeys(("X-Forwarded-For", "X-Real-IP", "True-Client-IP", "CF-Connecting-IP"), claimed)
            headers["Forwarded"] = f"for={claimed}"
            token = keys.generate("test").token
            expect = 401 if number < 5 else 429
            answers.append(await server.with_token(token).get("/v1/me", headers=headers, expect=expect))
            report.tried("guessing keys", expect)
        assert "Retry-After" in answers[-1].headers
        await good.get("/v1/me")
