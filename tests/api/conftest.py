"""The whole application on a real database and a real socket, and clients that hold every answer to its description."""

import functools
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator, FormatChecker

from crafely.api import ROUTES, openapi, server
from crafely.auth import keys
from crafely.auth.hashing import Hasher
from crafely.config import Settings
from crafely.db.session import Database, Identity, Session
from crafely.store import api_keys
from tests.auth.conftest import ISSUER, PARTY, Signer

# What every answer must carry, besides its request id.
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Server": "crafely"}

_FORMATS = {
    "date": re.compile(r"\d{4}-\d\d-\d\d"),
    "date-time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z"),
    # Never with an exponent.
    "decimal": re.compile(r"\d+(\.\d+)?"),
}
FORMATS = FormatChecker(formats=())
for _name, _pattern in _FORMATS.items():
    FORMATS.checks(_name)(lambda text, pattern=_pattern: not isinstance(text, str) or bool(pattern.fullmatch(text)))


@dataclass(frozen=True)
class Answer:
    """What the server said. A field of a JSON object is read with answer["name"]."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    def __getitem__(self, name: str) -> Any:
        return self.body[name]

    @property
    def places(self) -> list[str | None]:
        """Where the errors of a problem are: JSON pointers, or names of parameters."""
        return [error.get("pointer", error.get("parameter")) for error in self["errors"]]


class Client:
    """One caller. Every answer is compared with /openapi.json, and with the status that the test expects."""

    def __init__(self, http: aiohttp.ClientSession, token: str | None) -> None:
        self._http = http
        self.token = token or ""

    async def request(self, method: str, path: str, *, expect: int, **options: Any) -> Answer:
        """Takes what aiohttp's request takes; headers are added to the credentials."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers.update(options.pop("headers", {}))
        async with self._http.request(method, path, headers=headers, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
            route = response.url.path
        assert answer.status == expect, f"{method} {path}: {answer.status} {answer.raw[:1000]!r}"
        check(method, route, answer)
        return answer

    async def get(self, path: str, *, expect: int = 200, **params: Any) -> Answer:
        """GET, with query parameters by keyword; from_ stands for from."""
        named = {name.rstrip("_"): value for name, value in params.items()}
        return await self.request("GET", path, expect=expect, params=named)

    async def post(self, path: str, json: Any = None, *, expect: int = 201, **options: Any) -> Answer:
        return await self.request("POST", path, expect=expect, json=json, **options)

    async def patch(self, path: str, json: Any, *, expect: int = 200, **options: Any) -> Answer:
        return await self.request("PATCH", path, expect=expect, json=json, **options)

    async def delete(self, path: str, *, expect: int = 204, **options: Any) -> Answer:
        return await self.request("DELETE", path, expect=expect, **options)

    async def all(self, path: str, **params: Any) -> list[Any]:
        """Every row of a list, page by page, by its cursors."""
        rows: list[Any] = []
        more: dict[str, str] = {}
        for _ in range(1000):
            page = await self.get(path, **params, **more)
            rows += page["data"]
            if page["nextCursor"] is None:
                return rows
            more = {"cursor": page["nextCursor"]}
        raise AssertionError(f"{path}: the cursors lead to no end")


class Api:
    """A server, and its callers: alice and bob hold every permission but admin, admin holds all of them."""

    def __init__(self, http: aiohttp.ClientSession, address: tuple[str, int], database: Database, sign: Signer) -> None:
        self._http = http
        self.address = address
        self._database = database
        self._signer = sign
        self._hasher = Hasher(SETTINGS)
        self.anonymous = Client(http, None)
        self.alice: Client
        self.bob: Client
        self.admin: Client

    async def open(self) -> None:
        self.alice = await self.caller("alice", "*")
        self.bob = await self.caller("bob", "*")
        self.admin = await self.caller("root", "*", "admin")

    def close(self) -> None:
        self._hasher.close()

    def store(self, user: str) -> Session:
        """The store, as a user: to arrange what the API would not do."""
        return self._database.session("crafely_app", Identity(user))

    async def caller(self, user: str, *permissions: str) -> Client:
        """A user with a new key that holds these permissions."""
        new = keys.generate("test")
        await api_keys.create(
            self.store(user),
            user_id=user,
            key_id=new.key_id,
            hashed_key=await self._hasher.hash(new.secret),
            name="of the test",
            prefix=new.prefix,
            permissions=list(permissions),
            expires_at=None,
            rate_limit=None,
        )
        return Client(self._http, new.token)

    @staticmethod
    def raw(changes: dict[str, Any]) -> msgspec.Raw:
        """The changes of one of the store's updates."""
        return msgspec.Raw(msgspec.json.encode(changes))

    def with_token(self, token: str) -> Client:
        return Client(self._http, token)

    def signed_in(self, user: str, **claims: Any) -> Client:
        """A user with a session token of Clerk's form, signed with the RSA key that the server trusts."""
        return Client(self._http, self._signer.token(sub=user, **claims))


# The smallest hash that argon2 makes: what it costs is not what these tests are about.
SETTINGS = Settings(argon2_memory_kib=8, pool_size=4, key_environment="test", shutdown_grace=2, pool_timeout=1)


@asynccontextmanager
async def serving(url: str, sign: Signer, **settings: Any) -> AsyncIterator[Api]:
    """The application on the database at a URL, on a free port of loopback."""
    given = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__} | settings
    clerk = {"clerk_issuer": ISSUER, "clerk_pem": sign.pem, "clerk_authorized_parties": (PARTY,)}
    runner = server.runner(Settings(**{**given, **clerk, "clerk_admins": ("root",)}), url)
    database = Database(url, size=1, pool_timeout=5, statement_timeout=10, roles=("crafely_app",))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        await database.open()
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            api = Api(http, (host, port), database, sign)
            await api.open()
            yield api
            api.close()
    finally:
        await database.close()
        await runner.cleanup()


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer("ins_a")


@pytest.fixture
async def api(database_url: str, signer: Signer) -> AsyncIterator[Api]:
    """A server on a database of the test's own."""
    async with serving(database_url, signer) as api:
        yield api


@functools.cache
def description() -> dict[str, Any]:
    """/openapi.json, with every object closed: a field that it does not name must not be in an answer."""
    document = json.loads(openapi.build(ROUTES))
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return dict(document)


def operation(method: str, path: str) -> dict[str, Any] | None:
    """What the description says of a method at a path; a path that is written out goes before one with {id}."""
    paths = description()["paths"]
    fits = [one for one in paths if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one).replace(".", r"\."), path, re.DOTALL)]
    template = min(fits, key=lambda one: "{" in one, default=None)
    name = "get" if method == "HEAD" else method.lower()
    return paths[template].get(name) if template is not None else None


@functools.cache
def _validator(schema: str) -> Draft202012Validator:
    components = {"components": description()["components"]}
    return Draft202012Validator({**json.loads(schema), **components}, format_checker=FORMATS)


def check(method: str, path: str, answer: Answer) -> None:
    """Fails where an answer is not what the description promises."""
    where = f"{method} {path}: {answer.status}"
    for name, value in HEADERS.items():
        assert answer.headers.get(name) == value, f"{where}: {name}"
    assert answer.headers.get("X-Request-Id"), where
    # A hash or a stack trace is nobody's business.
    assert b"$argon2" not in answer.raw, where
    assert b"Traceback" not in answer.raw, where
    found = operation(method, path)
    if found is None:
        assert answer.status in {400, 404, 405}, f"{where}: what no route describes"
        described = description()["components"]["responses"][f"Problem{answer.status}"]
    else:
        assert str(answer.status) in found["responses"], f"{where} is not documented: {answer.raw[:500]!r}"
        described = found["responses"][str(answer.status)]
        if reference := described.get("$ref"):
            described = description()["components"]["responses"][reference.rpartition("/")[2]]
    _check_body(where, described.get("content", {}), answer, empty=method == "HEAD")
    if answer.status >= 400 and method != "HEAD":
        assert answer["requestId"] == answer.headers["X-Request-Id"], where
        assert answer["status"] == answer.status, where
        assert answer["type"] == f"/docs#problem-{answer['code']}", where


def _check_body(where: str, content: dict[str, Any], answer: Answer, *, empty: bool) -> None:
    if empty or not content:
        assert answer.raw == b"", where
        return
    media_type, described = next(iter(content.items()))
    assert answer.headers["Content-Type"] == media_type, where
    value = answer.body if media_type.endswith("json") else answer.raw.decode()
    errors = [error.message for error in _validator(json.dumps(described["schema"])).iter_errors(value)]
    assert not errors, f"{where} is not as described: {errors}"
