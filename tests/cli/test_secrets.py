"""Where secrets end up when a server and its clients do all that they should not: nowhere."""

import argparse
import json
import re
import socket
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from crafely.api import ROUTES
from crafely.cli import commands
from tests.auth.conftest import ISSUER, PARTY, Signer
from tests.cli.conftest import SECONDS, Serving, crafely, new_folder, processes, until

PASSWORD = "the-password-of-the-database"
CIPHER = "bWFya2VkLWVuY3J5cHRpb24ta2V5LW9mLWEtdGVzdCE="  # of 32 bytes


class Place(NamedTuple):
    """A server, what it was given to know, and what it must not tell of that."""

    serving: Serving
    database: str
    token: str
    session: str
    # What is looked for, by what it is: the secret part alone, as it stands or as it might be written.
    marks: dict[str, str]


@pytest.fixture(scope="module")
def place(module_database: str) -> Iterator[Place]:
    """Two workers that log all they can, on a database whose URL has a password in it, as most do."""
    signer = Signer("ins_a")
    session = signer.token(sub="user_of_the_test")
    url = make_conninfo(module_database, password=PASSWORD)
    variables = {
        "CRAFELY_DATABASE_URL": url,
        "CRAFELY_ENCRYPTION_KEYS": f"marked:{CIPHER}",
        "CRAFELY_LOG_LEVEL": "debug",
        "CRAFELY_WORKERS": "2",
        "CRAFELY_CLERK_ISSUER": ISSUER,
        "CRAFELY_CLERK_PEM": signer.pem,
        "CRAFELY_CLERK_AUTHORIZED_PARTIES": PARTY,
    }
    with new_folder() as folder:
        made = crafely(folder, "keys", "create", "--admin", "--json", **variables)
        assert made.returncode == 0, made.stderr
        token = json.loads(made.stdout)["key"]
        with psycopg.connect(module_database) as connection:
            [(hashed,)] = connection.execute("select hashed_key from api_keys").fetchall()
            connection.execute("create extension if not exists pg_stat_statements")
        serving = Serving(folder, **variables).ready()
        marks = {
            "key": token[-38:],
            "hash": str(hashed).rpartition("$")[2],
            "session token": session.rpartition(".")[2],
            "password": PASSWORD,
            "encryption key": CIPHER.rstrip("="),
        }
        yield Place(serving, module_database, token, session, marks)
        serving.stop()


def raw(place: Place, data: bytes) -> bytes:
    """What the server answers to bytes that no client library would send."""
    address = urlsplit(place.serving.address)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=SECONDS) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def request(line: str, *headers: str, body: str = "") -> bytes:
    fields = ["Host: x", "Connection: close", *headers]
    fields += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", body]).encode()


def misplaced(secret: str, good: str) -> Iterator[bytes]:
    """A secret wherever a confused client might put it; the credentials that do count are good ones."""
    auth = f"Authorization: Bearer {good}"
    part = quote(secret, safe="")
    for line in (
        f"GET /{part}",
        f"GET /v1/{part}/x",
        f"GET /v1/me?key={part}",
        f"GET /v1/me?{part}",
        f"GET /{part}?{part}=1",
    ):
        yield request(line, auth)
    for route in ROUTES:
        path = re.sub(r"{\w+}", part, route.path)
        yield request(f"{route.method} {path}?api_key={part}", auth)
        if route.method in {"POST", "PATCH"}:
            yield request(f"{route.method} {path}", auth, body=json.dumps({secret: secret, "name": secret}))
            yield request(f"{route.method} {path}", auth, f"Idempotency-Key: {secret}", body=f'{{"key": "{secret}"')
    for name in ("User-Agent", "Cookie", "Referer", "If-Match", "If-None-Match", "Idempotency-Key",
                 "Accept", "Expect", "Content-Type", "Content-Encoding", "X-Forwarded-For", "Origin"):  # fmt: skip
        yield request("POST /v1/agents", auth, f"{name}: {secret}", body="{}")
    if secret != PASSWORD:
        # A client's name for its request is logged and audited, as it wants; a key or a session token is none.
        for before in ("", "x-"):
            yield request("GET /v1/me", auth, f"X-Request-Id: {before}{secret}")
            yield request("POST /v1/agents", auth, f"X-Request-Id: {before}{secret[:128]}", body='{"name": "x"}')
            good_body = json.dumps({"name": "x", "instructions": ""})
            yield request("POST /v1/agents", auth, f"Idempotency-Key: {before}{secret[:200]}", body=good_body)
    for scheme in ("", "Basic ", "Bearer x"):
        yield request("GET /v1/me", f"Authorization: {scheme}{secret}")
    for header in (f"X-API-Key: {secret}x", f"{secret}: x", f"Host: {secret}", f"Transfer-Encoding: {secret}"):
        yield request("GET /v1/me", header)
    yield request("GET /v1/me", auth, f"Authorization: Bearer {secret}")
    for _ in range(2):
        # The second one is refused by the database, whose log tells of it.
        yield request("POST /v1/threads", auth, body=json.dumps({"name": "x", "storageId": secret[:255]}))
    yield request("POST /v1/api-keys/verify", auth, body=json.dumps({"key": secret, "permissions": secret}))
    yield request("POST /v1/api-keys/verify", auth, body=json.dumps({"key": f"{secret} "}))
    # What is not HTTP at all.
    yield f"{secret} / HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    yield f"GET / {secret}\r\n\r\n".encode()
    yield f"{secret}\r\n\r\n".encode()
    yield f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n x\0\r\n\r\n".encode()


def test_wherever_a_secret_is_put_it_is_written_nowhere(place: Place) -> None:
    statuses = set()
    # The last one has no form by which it could be known: its sender may hear it again, and nobody else.
    for secret in (place.token, place.session, place.token[:-6] + "000000", PASSWORD):
        for data in misplaced(secret, place.token):
            answer = raw(place, data)
            status = answer[9:12].decode()
            statuses.add(status)
            # What a client has stored as an agent's name is its own, and comes back.
            if status[0] not in "23" and secret != PASSWORD:
                assert found(place, answer.decode(errors="replace"), f"the answer to {data[:40]!r}…") == []
    assert statuses > {"200", "201", "400", "401", "404", "409", "422"}
    assert "500" not in statuses
    everything(place)


def everything(place: Place) -> None:
    """Fails where any mark is in what was written, what operators see, or what other users of the machine see."""
    serving = place.serving
    assert serving.get("/v1/me", place.token)[0] == 200
    until(lambda: '"route":"/v1/me"' in serving.err, "the access lines to be written")
    wrong = found(place, serving.out, "stdout") + found(place, serving.err, "stderr")
    wrong += found(place, str(serving.get("/metrics")[1]), "/metrics")
    for path in ("queries", "activity", "pool", "alerts"):
        status, told = serving.get(f"/v1/monitor/{path}", place.token)
        assert status == 200
        wrong += found(place, json.dumps(told), f"/v1/monitor/{path}")
    wrong += found(place, "\n".join(processes(serving.folder).values()), "process list")
    with psycopg.connect(place.database) as connection:
        wrong += _in_the_database(place, connection)
    host = conninfo_to_dict(place.database).get("host")
    log = Path(str(host)).parent / "postgres.log"
    if log.is_file():
        wrong += found(place, log.read_text(errors="replace"), "the database's log")
    assert wrong == []


def _in_the_database(place: Place, connection: psycopg.Connection[Any]) -> Iterator[str]:
    sessions = connection.execute("select to_jsonb(a)::text from pg_stat_activity a").fetchall()
    yield from found(place, "\n".join(row[0] for row in sessions), "pg_stat_activity")
    texts = connection.execute("select query from pg_stat_statements").fetchall()
    assert any("crafely:api_keys/lookup" in row[0] for row in texts)
    yield from found(place, "\n".join(row[0] for row in texts), "pg_stat_statements")
    tables = connection.execute(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
    ).fetchall()
    assert ("audit_log",) in tables
    for (table,) in tables:
        stored = connection.execute(SQL("select to_jsonb(t)::text from {} t").format(Identifier(table))).fetchall()
        allowed = {"hash"} if table == "api_keys" else set()
        text = "\n".join(row[0] for row in stored)
        # A name that a client has given to something of its own.
        text = re.sub(r'"(?:name|storage_id|old|new|response|body)": (?:"[^"]*"|{[^}]*})', "", text)
        yield from found(place, text, table, allowed)


def found(place: Place, text: str, where: str, allowed: Set[str] = frozenset()) -> list[str]:
    return [
        f"{what} in {where}: {_around(text, mark)}"
        for what, mark in place.marks.items()
        if mark in text and what not in allowed
    ]


def _around(text: str, mark: str) -> str:
    at = text.index(mark)
    return f"…{text[max(0, at - 80) : at]}(here){text[at + len(mark) : at + len(mark) + 40]}…"


def test_processes_are_given_secrets_only_where_nobody_else_reads_them(place: Place) -> None:
    ours = processes(place.serving.folder)
    # One that starts workers, and these.
    assert len(ours) == 3
    for pid in ours:
        environ = Path(f"/proc/{pid}/environ")
        assert environ.stat().st_mode & 0o077 == 0
        assert PASSWORD in environ.read_text(errors="replace")


def test_the_embedded_servers_processes_are_told_nothing(module_database: str) -> None:
    """A server outlives who started it, and is perhaps another user's."""
    with psycopg.connect(module_database) as connection:
        environ = Path(f"/proc/{connection.info.backend_pid}/environ")
        if not environ.exists():
            pytest.skip("the server is on another machine")
        assert not re.search("CRAFELY_|PGPASSWORD", environ.read_text(errors="replace"))


def test_no_option_takes_a_secret_on_the_command_line() -> None:
    def options(parser: argparse.ArgumentParser) -> Iterator[str]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for one in action.choices.values():
                    yield from options(one)
            else:
                yield from action.option_strings

    names = set(options(commands._parser()))
    assert {"--key-file", "--database"} <= names
    assert [name for name in names if re.search(r"(key|token|secret|password|pem)s?$", name) and name != "--keys"] == []


@pytest.mark.parametrize(
    "url", [f"postgresql://me:{PASSWORD}@host/name", f"host=x password={PASSWORD}", f"host=x sslpassword={PASSWORD}"]
)
def test_nor_does_a_database_with_its_password(capsys: pytest.CaptureFixture[str], url: str) -> None:
    for command in (["catalog", "--database", url], ["explain", "agents/get", "--database", url]):
        with pytest.raises(SystemExit, match="2"):
            commands.run(command)
        said = capsys.readouterr()
        assert "every user of the machine can read a password in an argument" in said.err
        assert PASSWORD not in said.out + said.err
