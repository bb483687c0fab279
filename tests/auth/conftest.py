"""A Clerk of our own: real RSA keys, and a real JWKS endpoint on loopback."""

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from crafely.auth.clerk import Clerk
from crafely.config import Settings

ISSUER = "https://clerk.example.com"
PARTY = "https://app.example.com"


def b64(data: bytes | dict[str, Any]) -> str:
    raw = json.dumps(data).encode() if isinstance(data, dict) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Signer:
    """One RSA key pair with a name, as Clerk holds it."""

    def __init__(self, kid: str, bits: int = 2048) -> None:
        self.kid = kid
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        self.pem = (
            self.private.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    @property
    def jwk(self) -> dict[str, Any]:
        members = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**members, "kid": self.kid, "use": "sig", "alg": "RS256"}

    def token(self, drop: tuple[str, ...] = (), headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A session token like Clerk's version 2, with some claims replaced or dropped."""
        now = int(time.time())
        payload = {
            "azp": PARTY,
            "exp": now + 60,
            "fva": [7, -1],
            "iat": now,
            "iss": ISSUER,
            "nbf": now - 10,
            "sid": "sess_2a",
            "sub": "user_2a",
            "v": 2,
            **claims,
        }
        for name in drop:
            del payload[name]
        return jwt.encode(payload, self.private, algorithm="RS256", headers={"kid": self.kid, **(headers or {})})


class JwksServer:
    """Serves the keys of `signers`, or whatever `answer` is set to, and counts the requests."""

    def __init__(self) -> None:
        self.signers: list[Signer] = []
        self.answer: Callable[[], web.StreamResponse] | None = None
        self.requests = 0
        self.url = ""

    async def serve(self, _request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.answer is not None:
            return self.answer()
        return await self.keys(_request)

    async def keys(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": [signer.jwk for signer in self.signers]})


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer("ins_a")


@pytest.fixture(scope="session")
def other_signer() -> Signer:
    return Signer("ins_b")


@pytest.fixture
async def jwks(signer: Signer) -> AsyncIterator[JwksServer]:
    server = JwksServer()
    server.signers = [signer]
    app = web.Application()
    app.router.add_get("/.well-known/jwks.json", server.serve)
    app.router.add_get("/elsewhere", server.keys)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}/.well-known/jwks.json"
    yield server
    await runner.cleanup()


@pytest.fixture
async def clerk(jwks: JwksServer) -> AsyncIterator[Clerk]:
    clerk = Clerk(Settings(clerk_issuer=ISSUER, clerk_jwks_url=jwks.url, clerk_authorized_parties=(PARTY,)))
    yield clerk
    await clerk.close()
