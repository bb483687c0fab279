"""Clerk session tokens, verified here and not by asking Clerk for each request.

A session token is a JWT signed with RS256. Its public key comes from a PEM in the settings or from Clerk's JWKS
endpoint. The claims used here (iss, sub, sid, azp, exp, nbf, iat) are the same in versions 1 and 2 of Clerk's token
(https://clerk.com/docs/guides/sessions/session-tokens and …/manual-jwt-verification); ``sts`` is new in version 2.
A sid is demanded: it makes a token one of a session, and not one that the same instance signed for a third party.
"""

import asyncio
import logging
import math
import re
import time
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import RSAAlgorithm
from msgspec import Meta

from crafely.config import Settings, SettingsError

log = logging.getLogger(__name__)

ALGORITHM = "RS256"
# A cookie, and so a session token, is at most 4 KiB; custom claims in a header may make it a little larger.
MAX_TOKEN_LENGTH = 8 * 1024
# Seconds by which Clerk's clock and ours may differ: what Clerk's own SDK allows.
LEEWAY = 5
# Seconds between two requests to the JWKS endpoint, whatever the tokens ask for.
REFETCH_INTERVAL = 10.0
# Seconds after which a known key is looked up again, in the background, so that a withdrawn key ends.
FRESH = 3600.0
FETCH_TIMEOUT = 5.0
MAX_JWKS_BYTES = 64 * 1024
MAX_JWKS_KEYS = 32
MIN_KEY_BITS = 2048

Fault = Literal[
    "not_configured",
    "malformed",
    "wrong_algorithm",
    "unknown_key",
    "bad_signature",
    "missing_claim",
    "expired",
    "not_yet_valid",
    "wrong_issuer",
    "wrong_party",
    "pending",
]

# The first class that fits names the fault, so subclasses stand before their bases.
_FAULTS: list[tuple[type[jwt.PyJWTError], Fault]] = [
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.InvalidIssuerError, "wrong_issuer"),
    (jwt.InvalidAudienceError, "wrong_party"),
    (jwt.MissingRequiredClaimError, "missing_claim"),
    (jwt.InvalidAlgorithmError, "wrong_algorithm"),
    (jwt.InvalidSignatureError, "bad_signature"),
    (jwt.PyJWTError, "malformed"),
]

# Ids go into a database column, a log and an audit trail: visible ASCII, and short.
_ID = re.compile(r"[!-~]{1,255}")


class InvalidToken(Exception):  # noqa: N818 - an answer to the caller, not a failure of ours
    """The token is refused. `code` says why, in one word of Fault."""

    def __init__(self, code: Fault) -> None:
        super().__init__(code)
        self.code: Fault = code


class Unavailable(Exception):  # noqa: N818 - a state that passes, not a failure
    """Clerk's keys cannot be fetched, so nobody can say whether the token is good: HTTP 503 with Retry-After."""


class Session(NamedTuple):
    """Who signed in, and in which session (Clerk's ``user_…`` and ``sess_…``)."""

    user_id: str
    session_id: str


class Clerk:
    """Verifies session tokens of one Clerk instance.

    Takes the settings' ``clerk_*``: without an issuer every token is refused; a PEM needs no network and wins over
    JWKS; the JWKS URL is the issuer's ``/.well-known/jwks.json`` unless given. Raises SettingsError when they do not
    fit together. Call `close` at the end.
    """

    def __init__(self, settings: Settings) -> None:
        # What a token's iss must be, to the letter. A slash at its end is a slip of whoever configured it.
        self._issuer = (settings.clerk_issuer or "").rstrip("/")
        self._parties = settings.clerk_authorized_parties
        self._keys = _key_source(settings, self._issuer)

    async def verify(self, token: str) -> Session:
        """The session that `token` proves.

        Raises InvalidToken, naming the first fault found (shape, algorithm, key, signature, then claims), and
        Unavailable when the keys to judge it cannot be had.
        """
        if self._keys is None:
            raise InvalidToken("not_configured")
        if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
            raise InvalidToken("malformed")
        try:
            key = await _find_key(self._keys, jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                # Fixed here, never taken from the token: a header that says none or HS256 ends at this list.
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["iss", "sub", "sid", "exp", "nbf", "iat"]},
            )
        except jwt.PyJWTError as error:
            raise InvalidToken(next(fault for kind, fault in _FAULTS if isinstance(error, kind))) from None
        return self._session(claims)

    async def close(self) -> None:
        """Stop fetching and close the connection to the JWKS endpoint."""
        if isinstance(self._keys, _Jwks):
            await self._keys.close()

    def _session(self, claims: dict[str, Any]) -> Session:
        # PyJWT takes a text for a number; RFC 7519 does not (section 2, NumericDate).
        if any(type(claims[name]) not in {int, float} for name in ("exp", "nbf", "iat")):
            raise InvalidToken("malformed")
        # A browser that hides its origin gets a token without azp; Clerk's guide checks the claim where it exists.
        party = claims.get("azp")
        if self._parties and party is not None and party not in self._parties:
            raise InvalidToken("wrong_party")
        # Signed in, but with tasks left (a new password, an organization to choose): Clerk counts it as signed out.
        if claims.get("sts") == "pending":
            raise InvalidToken("pending")
        user_id, session_id = claims["sub"], claims["sid"]
        for value in (user_id, session_id):
            if not isinstance(value, str) or not _ID.fullmatch(value):
                raise InvalidToken("malformed")
        return Session(user_id, session_id)


class _Jwk(msgspec.Struct):
    """One key of a JSON Web Key Set (RFC 7517). Members that an RSA signature key does not need are not read."""

    kty: str
    kid: str = ""
    use: str = "sig"
    alg: str = ALGORITHM
    n: str = ""
    e: str = ""


class _JwkSet(msgspec.Struct):
    keys: Annotated[list[_Jwk], Meta(max_length=MAX_JWKS_KEYS)]


class _Jwks:
    """The public keys behind a JWKS URL, by kid.

    One request at a time serves everybody who waits, and none starts within REFETCH_INTERVAL of the last: tokens with
    invented kids cannot make us hammer Clerk. Keys once fetched stay when the endpoint fails.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, RSAPublicKey] = {}
        # time.monotonic() of the last attempt's start and of the last success.
        self._tried = -math.inf
        self._fetched = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession | None = None

    async def get(self, kid: str) -> RSAPublicKey:
        """The key named `kid`. Raises InvalidToken when Clerk has none, Unavailable when Clerk cannot be asked."""
        if kid in self._keys:
            if time.monotonic() - self._fetched > FRESH:
                self._refresh()
            return self._keys[kid]
        if fetching := self._refresh():
            # Shielded: the others still wait for it when this request goes away.
            await asyncio.shield(fetching)
        if kid in self._keys:
            return self._keys[kid]
        if self._fetched < self._tried:
            raise Unavailable("the session's signing keys cannot be fetched")
        raise InvalidToken("unknown_key")

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        if self._http is not None:
            await self._http.close()

    def _refresh(self) -> asyncio.Task[None] | None:
        """The fetch under way, a new one when the interval allows it, or None."""
        now = time.monotonic()
        if self._fetching is None and now - self._tried >= REFETCH_INTERVAL:
            self._tried = now
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        try:
            self._keys = _rsa_keys(await self._download())
            self._fetched = time.monotonic()
        except (aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
            log.warning("no keys from %s, %d kept: %s: %s", self._url, len(self._keys), type(error).__name__, error)
        finally:
            self._fetching = None

    async def _download(self) -> bytes:
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_TIMEOUT))
        async with self._http.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_chunked(16 * 1024):
                body += chunk
                if len(body) > MAX_JWKS_BYTES:
                    raise ValueError(f"more than {MAX_JWKS_BYTES} bytes")
            return bytes(body)


def _key_source(settings: Settings, issuer: str) -> RSAPublicKey | _Jwks | None:
    """Where the keys come from. Raises SettingsError."""
    if not issuer:
        if settings.clerk_pem or settings.clerk_jwks_url:
            raise SettingsError("CRAFELY_CLERK_ISSUER: needed with CRAFELY_CLERK_PEM and CRAFELY_CLERK_JWKS_URL")
        return None
    if settings.clerk_pem:
        return _public_key(settings.clerk_pem)
    if settings.clerk_jwks_url:
        return _Jwks(_checked_url("CRAFELY_CLERK_JWKS_URL", settings.clerk_jwks_url))
    return _Jwks(_checked_url("CRAFELY_CLERK_ISSUER", issuer) + "/.well-known/jwks.json")


async def _find_key(source: RSAPublicKey | _Jwks, header: dict[str, Any]) -> RSAPublicKey:
    # Before any key is fetched, so that a token that cannot be good causes no request.
    if header.get("alg") != ALGORITHM:
        raise InvalidToken("wrong_algorithm")
    if isinstance(source, RSAPublicKey):
        return source
    kid = header.get("kid")
    if not isinstance(kid, str):
        raise InvalidToken("malformed")
    return await source.get(kid)


def _rsa_keys(document: bytes) -> dict[str, RSAPublicKey]:
    """The RS256 keys of a JWKS document by kid. Raises ValueError or a PyJWT error when it has none or is broken."""
    keys: dict[str, RSAPublicKey] = {}
    for jwk in msgspec.json.decode(document, type=_JwkSet).keys:
        if jwk.kid and (jwk.kty, jwk.use, jwk.alg) == ("RSA", "sig", ALGORITHM):
            # Only the public members are passed on, so that what comes back is a public key.
            key = RSAAlgorithm.from_jwk({"kty": jwk.kty, "n": jwk.n, "e": jwk.e})
            if isinstance(key, RSAPublicKey) and key.key_size >= MIN_KEY_BITS:
                keys[jwk.kid] = key
    if not keys:
        raise ValueError(f"no {ALGORITHM} key of {MIN_KEY_BITS} bits or more in it")
    return keys


def _public_key(pem: str) -> RSAPublicKey:
    try:
        # An environment file often holds the line breaks as \n.
        key = load_pem_public_key(pem.replace("\\n", "\n").encode())
    except ValueError:
        key = None
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise SettingsError(f"CRAFELY_CLERK_PEM: an RSA public key of {MIN_KEY_BITS} bits or more in PEM form")
    return key


def _checked_url(name: str, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    # Keys fetched in the clear are whatever the network says they are.
    if parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}:
        return url
    raise SettingsError(f"{name}: an https:// URL (http:// only on this machine)")
