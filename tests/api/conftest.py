"""The whole application on a real database and a real socket, and clients that hold every answer to its description."""

import functools
import io
import itertools
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import psycopg
import pytest
import pytest_asyncio
from aiohttp import web
from jsonschema import Draft202012Validator, FormatChecker
from yarl import URL

from crafely import keyring
from crafely.api import ROUTES, openapi, telemetry
from crafely.api import server as application
from crafely.auth import keys
from crafely.auth.hashing import Hasher
from crafely.config import Settings
from crafely.db.session import Database, Identity, Session
from crafely.store import api_keys
from tests.auth.conftest import ISSUER, PARTY, Signer
from tests.conftest import ENCRYPTION_KEY, replica_of

# What every answer must carry, besides its request id.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "crafely",
}
# Of what is no page a browser runs nothing.
INERT = "default-src 'none'; frame-ancestors 'none'"

_FORMATS = {
    "date": re.compile(r"\d{4}-\d\d-\d\d"),
    "date-time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z"),
    # Never with an exponent.
    "decimal": re.compile(r"-?\d+(\.\d+)?"),
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

    def __init__(self, http: aiohttp.ClientSession, token: str = "", user: str = "") -> None:
        self._http = http
        self.token = token
        self.user = user

    async def request(self, method: str, path: str, *, expect: int, **options: Any) -> Answer:
        """Takes what aiohttp's request takes; headers are added to the credentials. The path is sent as it stands."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers.update(options.pop("headers", {}))
        async with self._http.request(method, URL(path, encoded=True), headers=headers, **options) as response:
            answer = Answer(response.status, response.headers, await response.read())
        assert answer.status == expect, f"{method} {path}: {answer.status} {answer.raw[:1000]!r}"
        check(method, path.partition("?")[0], answer)
        return answer

    async def get(self, path: str, *, expect: int = 200, **options: Any) -> Answer:
        return await self.request("GET", path, expect=expect, **options)

    async def post(self, path: str, json: Any = None, *, expect: int = 201, **options: Any) -> Answer:
        body = {} if json is None else {"json": json}
        return await self.request("POST", path, expect=expect, **body, **options)

    async def patch(self, path: str, json: Any, *, expect: int = 200, **options: Any) -> Answer:
        return await self.request("PATCH", path, expect=expect, json=json, **options)

    async def delete(self, path: str, *, expect: int = 204, **options: Any) -> Answer:
        return await self.request("DELETE", path, expect=expect, **options)

    async def all(self, path: str, **params: Any) -> list[Any]:
        """Every row of a list, page by page, by its cursors."""
        rows: list[Any] = []
        for _ in range(1000):
            page = await self.get(path, params=params)
            rows += page["data"]
            if page["nextCursor"] is None:
                return rows
            params["cursor"] = page["nextCursor"]
        raise AssertionError(f"{path}: the cursors lead to no end")


class Server:
    """A running server on a database, and what a test needs to arrange and to look at what is stored."""

    def __init__(self, url: str, address: tuple[str, int], http: aiohttp.ClientSession, signer: Signer) -> None:
        self.url = url
        self.address = address
        self.signer = signer
        self._http = http
        self._database = Database(url, size=1, pool_timeout=5, statement_timeout=10, roles=("crafely_app",))
        self._hasher = Hasher(SETTINGS)

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        self._hasher.close()
        await self._database.close()

    def store(self, user: str) -> Session:
        """The store, as a user: to arrange what the API would not do."""
        return self._database.session("crafely_app", Identity(user))

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs SQL as the superuser, whom row-level security does not hold back."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

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
        return Client(self._http, new.token, user)

    def with_token(self, token: str) -> Client:
        return Client(self._http, token)

    def signed_in(self, user: str, **claims: Any) -> Client:
        """A user with a session token of Clerk's form, signed with the RSA key that the server trusts."""
        return Client(self._http, self.signer.token(sub=user, **claims), user)


@dataclass(frozen=True)
class Api:
    """A server and some callers, who are new in each test: a server may serve many tests and nobody sees the others.

    alice and bob hold every permission but admin, and admin holds all of them.
    """

    server: Server
    alice: Client
    bob: Client
    admin: Client
    anonymous: Client


_numbers = itertools.count(1)


async def introduce(server: Server) -> Api:
    number = next(_numbers)
    return Api(
        server,
        await server.caller(f"alice-{number}", "*"),
        await server.caller(f"bob-{number}", "*"),
        await server.caller(f"admin-{number}", "*", "admin"),
        server.with_token(""),
    )


# The smallest hash that argon2 makes: what it costs is not what these tests are about.
# Nor is it how often one may try: all tests come from one address.
SETTINGS = Settings(
    argon2_memory_kib=8,
    pool_size=4,
    key_environment="test",
    shutdown_grace=2,
    pool_timeout=1,
    encryption_keys=keyring.parse(ENCRYPTION_KEY),
    rate_limit_failures="off",
)
# The user whose session tokens hold admin.
ROOT = "user_root"


@asynccontextmanager
async def serving(url: str, signer: Signer, **settings: Any) -> AsyncIterator[Server]:
    """The application on the database at a URL, on a free port of loopback."""
    clerk = {
        "clerk_issuer": ISSUER,
        "clerk_pem": signer.pem,
        "clerk_authorized_parties": (PARTY,),
        "clerk_admins": (ROOT,),
    }
    settings = {"replica_url": replica_of(url), **settings}
    runner = application.runner(msgspec.structs.replace(SETTINGS, **clerk, **settings), url)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            server = Server(url, (host, port), http, signer)
            await server.open()
            yield server
            await server.close()
    finally:
        await runner.cleanup()


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer("ins_a")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(module_database: str, signer: Signer) -> AsyncIterator[Server]:
    """A server for the tests of one module."""
    async with serving(module_database, signer) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared: Server) -> Api:
    """The module's server and callers of the test's own. The module says so: asyncio(loop_scope="module")."""
    return await introduce(shared)


@pytest.fixture
async def own(database_url: str, signer: Signer) -> AsyncIterator[Server]:
    """A server on a database of the test's own, for tests that harm it."""
    async with serving(database_url, signer) as server:
        yield server


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
    if not answer.headers.get("Content-Type", "").startswith("text/html"):
        assert answer.headers.get("Content-Security-Policy") == INERT, where
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


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the server writes to its log, as it does in production."""
    root, level, before = logging.getLogger(), logging.getLogger().level, logging.getLogger().handlers[:]
    stream = io.StringIO()
    telemetry.configure_logging("info", stream)
    yield stream
    telemetry.configure_logging("info", io.StringIO())
    root.handlers[:] = before
    root.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    telemetry.hand_over()
    return [json.loads(line) for line in log.getvalue().splitlines()]
