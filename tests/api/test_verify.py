"""``POST /v1/api-keys/verify``, and what has ended is refused from the moment in which that shows."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
import pytest

from crafely.api import housekeeping
from tests.api.conftest import Answer, Api, Client, Server, serving
from tests.api.test_housekeeping import becomes, last_used
from tests.auth.conftest import Signer
from tests.auth.table import with_secret

VERIFY = "/v1/api-keys/verify"
# Any loop: tests that harm their server have one of their own.
alone = pytest.mark.asyncio(loop_scope="function")
pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = "crf_test_0000000000000000_000000000000000000000000000000003fzcPe"
NOTHING = dict.fromkeys(
    ("id", "keyId", "userId", "permissions", "expiresAt", "rateLimit", "rateLimitRemaining", "rateLimitReset")
)


async def verify(caller: Client, key: str, *permissions: str) -> Answer:
    body = {"key": key, "permissions": permissions} if permissions else {"key": key}
    return await caller.post(VERIFY, body, expect=200)


async def code(caller: Client, key: str, *permissions: str) -> str:
    """Asked twice: of the database, and of what is remembered."""
    first = await verify(caller, key, *permissions)
    assert (await verify(caller, key, *permissions)).body == first.body
    assert first["valid"] is (first["code"] == "VALID")
    return str(first["code"])


async def test_a_good_key_shows_whose_it_is_and_what_it_may_do(api: Api) -> None:
    until = "2999-12-31T23:59:59Z"
    body = {"permissions": ["agents:read", "documents:write"], "expiresAt": until, "rateLimit": 60}
    made = await api.bob.post("/v1/api-keys", body)
    wanted = {"valid": True, "code": "VALID", "id": made["id"], "keyId": made["keyId"], "userId": api.bob.user, **body}
    # A service verifies the keys of all users, not only its own.
    for asked in ([], ["documents:write", "agents:read"]) * 2:
        told = (await verify(api.alice, made["key"], *asked)).body
        assert 0 < told.pop("rateLimitRemaining") < 60
        assert 0 < told.pop("rateLimitReset") <= 60
        assert told == wanted


async def test_a_key_that_lacks_a_permission_is_not_valid_for_it(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {"permissions": ["agents:read"]})
    for wanted in (["agents:write"], ["agents:read", "usage:write"], ["admin"], ["*"]):
        answer = await verify(api.alice, made["key"], *wanted)
        assert (answer["valid"], answer["code"], answer["id"]) == (False, "INSUFFICIENT_PERMISSIONS", made["id"])
        assert answer["permissions"] == ["agents:read"]
    assert await code(api.alice, api.bob.token, "usage:write", "documents:read") == "VALID"
    assert await code(api.alice, api.bob.token, "admin") == "INSUFFICIENT_PERMISSIONS"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("active = false", "REVOKED"),
        ("expires_at = now() - interval '1 second'", "EXPIRED"),
        ("active = false, expires_at = now() - interval '1 second'", "REVOKED"),
    ],
)
async def test_only_who_has_the_secret_learns_that_a_key_has_ended(api: Api, change: str, wanted: str) -> None:
    made = await api.alice.post("/v1/api-keys", {"permissions": ["agents:read"]})
    api.server.sql(f"update api_keys set {change} where id = %s", made["id"])  # noqa: S608 - of this file
    answer = await verify(api.alice, made["key"], "usage:write")
    assert (answer["valid"], answer["code"], answer["userId"]) == (False, wanted, api.alice.user)
    assert await code(api.alice, made["key"]) == wanted
    wrong = await verify(api.alice, with_secret(made["key"], "x" * 32))
    assert wrong.body == {"valid": False, "code": "NOT_FOUND", **NOTHING}


async def test_an_unknown_key_and_a_wrong_secret_look_the_same(api: Api) -> None:
    made = await api.alice.post("/v1/api-keys", {})
    for key in (with_secret(UNKNOWN, "0" * 32), with_secret(made["key"], "x" * 32)):
        for _ in range(2):
            assert (await verify(api.alice, key)).body == {"valid": False, "code": "NOT_FOUND", **NOTHING}
    assert await code(api.alice, made["key"]) == "VALID"


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + "0", str.swapcase, lambda _: "é 漢"])
async def test_what_is_no_key_is_malformed(api: Api, change: Callable[[str], str]) -> None:
    assert (await verify(api.alice, change(api.bob.token))).body == {"valid": False, "code": "MALFORMED", **NOTHING}
    assert await code(api.alice, "a.session.token") == "MALFORMED"


async def test_verifying_takes_its_permission(api: Api) -> None:
    may = await api.server.caller(api.alice.user, "keys:verify")
    assert await code(may, api.bob.token) == "VALID"
    may_not = await api.server.caller(api.alice.user, "keys:read", "keys:write")
    refused = await may_not.post(VERIFY, {"key": api.bob.token}, expect=403)
    assert "keys:verify" in refused["detail"]
    await api.anonymous.post(VERIFY, {"key": api.bob.token}, expect=401)


async def test_a_token_of_bytes_that_are_no_text_is_refused(api: Api) -> None:
    """aiohttp gives such bytes as halves of surrogate pairs, which cannot be encoded."""
    host, port = api.server.address
    for token in (b"\xff", b"crf_\xff\xfe", api.bob.token.encode() + b"\xed\xa0\x80"):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            b"GET /v1/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + token + b"\r\n\r\n"
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.split(b" ", 2)[1] in {b"400", b"401"}, answer


class Hammer:
    """Verifies a key from several connections without a pause, and notes when it asked and what it heard."""

    def __init__(self, server: Server, key: str, *permissions: str) -> None:
        # A session token: what happens to the keys does not happen to it.
        self._caller = server.signed_in("user_checker")
        self._key = key
        self._permissions = permissions
        # Sent, received, code.
        self.heard: list[tuple[float, float, str]] = []
        self._tasks = [asyncio.create_task(self._verify()) for _ in range(6)]

    async def _verify(self) -> None:
        after = 0
        # Some more after the first refusal, to see that none is taken back.
        while after < 20:
            sent = perf_counter()
            answer = await verify(self._caller, self._key, *self._permissions)
            self.heard.append((sent, perf_counter(), answer["code"]))
            after += answer["code"] != "VALID"

    async def warm(self) -> None:
        await self.count(30)

    async def count(self, more: int) -> None:
        """Waits until so many more answers have come."""
        wanted = len(self.heard) + more
        async with asyncio.timeout(60):
            while len(self.heard) < wanted:
                await asyncio.sleep(0)
                for task in self._tasks:
                    if task.done():
                        task.result()

    async def ends(self, wanted: str, visible: float = float("inf")) -> None:
        """The key is refused, and of what was asked after that was visible nothing was VALID."""
        # Less than a row is believed for at most: it must have been told.
        async with asyncio.timeout(30):
            await asyncio.gather(*self._tasks)
        denied = min(received for _, received, code in self.heard if code != "VALID")
        late = [code for sent, _, code in self.heard if sent > min(denied, visible)]
        assert len(late) >= 20
        assert set(late) == {wanted}
        assert {code for *_, code in self.heard} == {"VALID", wanted}


End = Callable[[Server, Client, dict[str, Any], Any], Awaitable[float]]


async def by_the_api(_: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    await owner.delete(f"/v1/api-keys/{made['id']}")
    return perf_counter()


async def by_psql(_: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    done = await asyncio.to_thread(psql, f"update api_keys set active = false where id = '{made['id']}'")  # noqa: S608
    assert done.returncode == 0, done.stderr
    return float("inf")


async def by_the_command_line(server: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    program = str(Path(sys.executable).with_name("crafely"))
    command = [program, "keys", "revoke", "--user", owner.user, made["id"]]
    environ = {**os.environ, "CRAFELY_DATABASE_URL": server.url}
    done = await asyncio.to_thread(subprocess.run, command, env=environ, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return float("inf")


async def by_deleting_the_row(_: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    done = await asyncio.to_thread(psql, f"delete from api_keys where id = '{made['id']}'")  # noqa: S608
    assert done.returncode == 0, done.stderr
    return float("inf")


async def by_truncating(_: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    done = await asyncio.to_thread(psql, "truncate api_keys cascade")
    assert done.returncode == 0, done.stderr
    return float("inf")


async def by_narrowing(_: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    await owner.patch(f"/v1/api-keys/{made['id']}", {"permissions": ["agents:write"]})
    return perf_counter()


async def by_an_end(_: Server, owner: Client, made: dict[str, Any], psql: Any) -> float:
    # The API takes no time that is past, and a busy machine may take a second to bring it there.
    end = datetime.now(UTC) + timedelta(seconds=2)
    await owner.patch(f"/v1/api-keys/{made['id']}", {"expiresAt": end.isoformat()})
    await becomes(lambda: datetime.now(UTC), lambda now: bool(now > end))
    return perf_counter()


ENDS = [
    (by_the_api, "REVOKED"),
    (by_psql, "REVOKED"),
    (by_the_command_line, "REVOKED"),
    (by_deleting_the_row, "NOT_FOUND"),
    (by_truncating, "NOT_FOUND"),
    (by_narrowing, "INSUFFICIENT_PERMISSIONS"),
    (by_an_end, "EXPIRED"),
]


@alone
@pytest.mark.parametrize(("end", "wanted"), ENDS)
async def test_no_key_is_valid_after_its_end_was_visible(own: Server, psql: Any, end: End, wanted: str) -> None:
    owner = await own.caller("alice", "*")
    made = (await owner.post("/v1/api-keys", {"permissions": ["agents:read"]})).body
    hammer = Hammer(own, made["key"], "agents:read")
    await hammer.warm()
    await hammer.ends(wanted, await end(own, owner, made, psql))
    if wanted != "INSUFFICIENT_PERMISSIONS":
        await own.with_token(made["key"]).get("/v1/me", expect=401)


@alone
async def test_a_key_that_is_revoked_while_it_is_looked_up_is_revoked(own: Server) -> None:
    owner = await own.caller("alice", "*")
    made = await owner.post("/v1/api-keys", {})
    checker = own.signed_in("user_checker")
    with psycopg.connect(own.url) as connection:
        connection.execute("lock table api_keys in access exclusive mode")
        connection.execute("update api_keys set active = false where id = %s", (made["id"],))
        asked = [asyncio.create_task(verify(checker, made["key"])) for _ in range(5)]

        def waiting() -> int:
            found = own.sql("select 1 from pg_locks where not granted and relation = 'api_keys'::regclass")
            return len(found)

        await becomes(waiting, lambda count: count > 0)
        connection.commit()
        assert {answer["code"] for answer in await asyncio.gather(*asked)} == {"REVOKED"}
    assert await code(checker, made["key"]) == "REVOKED"


LISTENERS = (
    "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
    " and application_name = 'crafely auth' and (starts_with(query, 'listen ') or query = 'select')"
)


@alone
async def test_a_key_that_is_revoked_while_nobody_listens_is_refused_at_once(own: Server) -> None:
    """What is remembered is not believed from the moment in which changes may go untold."""
    owner = await own.caller("alice", "*")
    checker = own.signed_in("user_checker")
    for _ in range(10):
        made = await owner.post("/v1/api-keys", {})
        assert await code(checker, made["key"]) == "VALID"
        # The server's loop does not turn between these three.
        assert own.sql(LISTENERS) == [(True,)]
        own.sql("update api_keys set active = false where id = %s", made["id"])
        assert await code(checker, made["key"]) == "REVOKED"
        await becomes(lambda: own.sql(LISTENERS.replace("pg_terminate_backend(pid, 5000)", "1")), bool)


@alone
async def test_while_nobody_listens_keys_are_valid_and_revoked_all_the_same(own: Server, psql: Any) -> None:
    owner = await own.caller("alice", "*")
    made = (await owner.post("/v1/api-keys", {"permissions": ["agents:read"]})).body
    hammer = Hammer(own, made["key"], "agents:read")
    await hammer.warm()
    for _ in range(3):
        own.sql(LISTENERS)
        await hammer.count(10)
    own.sql(LISTENERS)
    await hammer.ends("REVOKED", await by_psql(own, owner, made, psql))


@alone
async def test_a_key_that_is_good_counts_as_used_and_no_other(
    database_url: str, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "TOUCHES", 0.05)
    async with serving(database_url, signer) as server:
        checker = server.signed_in("user_checker")
        good, lacking, revoked, wrong = [await server.caller(user, "agents:read") for user in ("a", "b", "c", "d")]
        server.sql("update api_keys set active = false where user_id = 'c'")
        assert await code(checker, revoked.token) == "REVOKED"
        assert await code(checker, with_secret(wrong.token, "x" * 32)) == "NOT_FOUND"
        assert await code(checker, good.token) == "VALID"
        await becomes(lambda: last_used(server, "a"), lambda rows: rows[0][0] is not None)
        assert await code(checker, lacking.token, "usage:write") == "INSUFFICIENT_PERMISSIONS"
    # It writes what waits when it stops.
    assert [last_used(server, user)[0][0] is not None for user in "abcd"] == [True, True, False, False]
