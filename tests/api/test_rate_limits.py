"""Limits over HTTP: what a client sees, on every route."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crafely.api import ROUTES
from crafely.auth import Verifier, keys, rate_limits
from crafely.auth.clerk import Clerk
from tests.api.conftest import Answer, Api, Client, Server, check, introduce, lines, serving
from tests.auth.conftest import Signer

NOON = 1_800_000_000
KEYS = "/v1/api-keys"
VERIFY = f"{KEYS}/verify"
FAILURES = 5


class Clock:
    """The time that limits see: it stands until a test moves it."""

    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limits, "time", made)
    return made


@pytest.fixture
async def api(database_url: str, signer: Signer, clock: Clock) -> AsyncIterator[Api]:
    """A server of the test's own, which counts failures, behind a proxy that it believes."""
    settings: dict[str, Any] = {"rate_limit_failures": FAILURES, "trusted_proxies": ("127.0.0.0/8",)}
    async with serving(database_url, signer, **settings) as server:
        yield await introduce(server)


def standing(answer: Answer) -> dict[str, tuple[int, int, int]]:
    """Quota, what is left, and seconds, by the limit's name, as draft-ietf-httpapi-ratelimit-headers-10 writes them."""
    policies = re.fullmatch(r'("\w+";q=\d+;w=60(, |$))+', answer.headers["RateLimit-Policy"])
    assert policies, answer.headers
    quotas = dict(re.findall(r'"(\w+)";q=(\d+)', answer.headers["RateLimit-Policy"]))
    left = {name: rest for name, *rest in re.findall(r'"(\w+)";r=(\d+);t=(\d+)', answer.headers["RateLimit"])}
    assert quotas.keys() == left.keys()
    return {name: (int(quotas[name]), int(left[name][0]), int(left[name][1])) for name in quotas}


def says_429(answer: Answer, name: str, quota: int, seconds: int) -> None:
    assert answer["code"] == "rate_limited"
    assert answer["violated-policies"] == [name]
    assert str(quota) in answer["detail"]
    assert answer.headers["Retry-After"] == str(seconds)
    assert answer.headers["RateLimit-Policy"] == f'"{name}";q={quota};w=60'
    assert answer.headers["RateLimit"] == f'"{name}";r=0;t={seconds}'


async def limited(api: Api, rate_limit: int, *permissions: str) -> Client:
    """alice, with another key that has a limit."""
    made = await api.alice.post(KEYS, {"permissions": list(permissions), "rateLimit": rate_limit})
    return api.server.with_token(made["key"])


async def test_every_authenticated_answer_says_how_its_caller_stands(api: Api) -> None:
    """Whatever its status: an unknown id, a missing body, a missing permission."""
    for caller in (api.admin, await api.server.caller("nobody")):
        routes = [route for route in ROUTES if route.permission is not None]
        for count, route in enumerate(routes, 1):
            path, token = re.sub(r"{\w+}", "none", route.path), {"Authorization": f"Bearer {caller.token}"}
            async with api.server._http.request(route.method, path, headers=token) as response:
                answer = Answer(response.status, response.headers, await response.read())
            assert standing(answer) == {"user": (60_000, 60_000 - count, 60)}, route
            assert "Retry-After" not in answer.headers
            check(route.method, path, answer)


async def test_public_answers_say_nothing_of_limits(api: Api) -> None:
    for path in ("/healthz", "/docs", "/openapi.json"):
        assert "RateLimit" not in (await api.anonymous.get(path)).headers
    assert "RateLimit" not in (await api.anonymous.get("/v1/me", expect=401)).headers


async def test_a_key_is_refused_when_its_limit_is_used_up(api: Api, clock: Clock) -> None:
    caller = await limited(api, 3, "agents:read")
    clock.now += 20
    for left in (2, 1, 0):
        answer = await caller.get("/v1/agents")
        assert standing(answer) == {"key": (3, left, 40), "user": (60_000, 59_996 + left, 40)}
    says_429(await caller.get("/v1/agents", expect=429), "key", 3, 40)
    # Nothing is done, whatever it is, and what is not allowed is not found out.
    for method, path in (("POST", KEYS), ("GET", "/v1/agents/none"), ("DELETE", "/v1/threads/none")):
        says_429(await caller.request(method, path, expect=429), "key", 3, 40)
    await api.alice.get("/v1/agents")
    clock.now += 40
    await caller.get("/v1/agents")
    assert 'crafely_rate_limit_refusals_total{limit="key"} ' in (await api.anonymous.get("/metrics")).raw.decode()


async def test_another_limit_of_a_key_holds_at_once(api: Api) -> None:
    caller = await limited(api, 1, "keys:read")
    me = (await caller.get("/v1/me"))["apiKeyId"]
    await caller.get("/v1/me", expect=429)
    await api.alice.patch(f"{KEYS}/{me}", {"rateLimit": 3})
    assert standing(await caller.get("/v1/me"))["key"] == (3, 0, 60)
    await api.alice.patch(f"{KEYS}/{me}", {"rateLimit": None})
    assert standing(await caller.get("/v1/me")).keys() == {"user"}


async def test_keys_and_sessions_of_a_user_have_one_limit(database_url: str, signer: Signer, clock: Clock) -> None:
    async with serving(database_url, signer, rate_limit_user=3) as server:
        one, other = await server.caller("ann"), await server.caller("ann")
        for caller in (one, other, server.signed_in("ann")):
            await caller.get("/v1/me")
        for caller in (one, other, server.signed_in("ann")):
            says_429(await caller.get("/v1/me", expect=429), "user", 3, 60)
        await server.signed_in("bob").get("/v1/me")


async def subscribe(api: Api, user: str, rate_limit: int | None, **more: Any) -> str:
    name = f"package {rate_limit} of {user}"
    package = await api.admin.post("/v1/packages", {"name": name, "price": "1", "rateLimit": rate_limit})
    assert package["rateLimit"] == rate_limit
    body = {"packageId": package["id"], "userId": user, **more}
    await api.admin.post("/v1/user-subscriptions", body)
    return str(package["id"])


async def next_minute(clock: Clock, caller: Client) -> dict[str, tuple[int, int, int]]:
    """How a caller stands in the next minute, once it is known what his packages allow."""
    clock.now += 60
    before = standing(await caller.get("/v1/me"))
    for _ in range(1000):
        now = standing(await caller.get("/v1/me"))
        if {name: quota for name, (quota, *_) in now.items()} != {name: quota for name, (quota, *_) in before.items()}:
            return now
        await asyncio.sleep(0.01)
    return before


async def test_what_packages_allow_holds_within_a_minute(api: Api, clock: Clock) -> None:
    package = await subscribe(api, "ann", 2000)
    await subscribe(api, "ann", None)
    caller, session = await api.server.caller("ann"), api.server.signed_in("ann")
    # Without a limit of its own and a default, the key has the package's; the user has it in any case.
    assert standing(await caller.get("/v1/me")) == {"key": (2000, 1999, 60), "user": (2000, 1999, 60)}
    assert standing(await session.get("/v1/me")) == {"user": (2000, 1998, 60)}

    await api.admin.patch(f"/v1/packages/{package}", {"rateLimit": 3000})
    assert (await next_minute(clock, caller))["user"][0] == 3000
    # The largest of several; one that has not begun and one that has ended allow nothing.
    await subscribe(api, "ann", 4000)
    await subscribe(api, "ann", 9000, startDate="2999-01-01T00:00:00Z")
    await subscribe(api, "ann", 9001, startDate="2001-01-01T00:00:00Z", endDate="2002-01-01T00:00:00Z")
    assert (await next_minute(clock, caller))["user"][0] == 4000
    api.server.sql("update user_subscriptions set status = 'cancelled' where user_id = 'ann'")
    assert (await next_minute(clock, caller)).keys() == {"user"}


async def test_a_default_for_keys_goes_before_the_package(database_url: str, signer: Signer, clock: Clock) -> None:
    async with serving(database_url, signer, rate_limit=70) as server:
        await subscribe(await introduce(server), "ann", 2000)
        assert standing(await (await server.caller("ann")).get("/v1/me")) == {
            "key": (70, 69, 60),
            "user": (2000, 1999, 60),
        }


async def test_a_presented_key_is_used_up_like_one_that_calls(api: Api, clock: Clock) -> None:
    made = await api.bob.post(KEYS, {"permissions": ["agents:read"], "rateLimit": 3})
    clock.now += 10
    for left in (2, 1):
        told = await api.alice.post(VERIFY, {"key": made["key"]}, expect=200)
        assert (told["code"], told["rateLimit"], told["rateLimitRemaining"]) == ("VALID", 3, left)
        assert told["rateLimitReset"] == 50
    # What a key may not do anyway does not use it up.
    asked = {"key": made["key"], "permissions": ["agents:write"]}
    assert (await api.alice.post(VERIFY, asked, expect=200))["code"] == "INSUFFICIENT_PERMISSIONS"
    # Its own requests are counted with it.
    await api.server.with_token(made["key"]).get("/v1/me")
    told = await api.alice.post(VERIFY, {"key": made["key"]}, expect=200)
    assert (told["valid"], told["code"], told["id"]) == (False, "RATE_LIMITED", made["id"])
    assert (told["rateLimit"], told["rateLimitRemaining"], told["rateLimitReset"]) == (3, 0, 50)
    # The one who asks is counted as ever: five questions.
    assert standing(told) == {"user": (60_000, 59_996, 50)}
    clock.now += 60
    assert (await api.alice.post(VERIFY, {"key": made["key"]}, expect=200))["code"] == "VALID"


def from_(address: str) -> dict[str, Any]:
    return {"headers": {"X-Forwarded-For": address}}


async def test_an_address_is_refused_after_so_many_failures(
    api: Api, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.now += 15
    here, elsewhere = from_("192.0.2.1"), from_("192.0.2.2")
    await api.alice.get("/v1/me", **here)
    fresh = await api.server.caller("fresh")
    for n in range(FAILURES):
        await api.server.with_token([keys.generate("test").token, "nonsense"][n % 2]).get("/v1/me", expect=401, **here)

    seen: list[str] = []
    for kind, name in ((Verifier, "examine"), (Clerk, "verify")):
        ask = getattr(kind, name)

        async def noted(self: Any, token: str, ask: Any = ask) -> Any:
            seen.append(token)
            return await ask(self, token)

        monkeypatch.setattr(kind, name, noted)
    unknown = api.server.with_token(keys.generate("test").token)
    for _ in range(3):
        says_429(await unknown.get("/v1/me", expect=429, **here), "address", FAILURES, 45)
    # Nobody can say of a key that was never seen whether it is good, nor of a session.
    says_429(await fresh.get("/v1/me", expect=429, **here), "address", FAILURES, 45)
    says_429(await api.server.signed_in("ann").get("/v1/me", expect=429, **here), "address", FAILURES, 45)
    assert seen == []

    # Who is known to be good goes on, there as elsewhere, though its row has to be read anew.
    await api.alice.get("/v1/me", **here)
    api.server.sql("update api_keys set permissions = '{*,documents:read}' where user_id = %s", api.alice.user)
    await api.alice.get("/v1/me", **here)
    await fresh.get("/v1/me", **elsewhere)
    await fresh.get("/v1/me", **here)
    clock.now += 45
    await unknown.get("/v1/me", expect=401, **here)


@pytest.mark.parametrize(
    "ended",
    [
        "update api_keys set active = false where user_id = 'ann'",
        "update api_keys set expires_at = now() - interval '1 hour' where user_id = 'ann'",
    ],
)
async def test_whose_key_has_ended_is_no_guesser(api: Api, ended: str) -> None:
    caller = await api.server.caller("ann")
    api.server.sql(ended)
    for _ in range(FAILURES * 2):
        await caller.get("/v1/me", expect=401)
        await api.server.signed_in("ann", exp=1_000_000_000).get("/v1/me", expect=401)
    # Nor is one who shows nothing.
    for _ in range(FAILURES * 2):
        await api.anonymous.get("/v1/me", expect=401)
    await (await api.server.caller("bob")).get("/v1/me")


async def test_forged_sessions_are_failures(api: Api) -> None:
    stranger = Signer("ins_a")
    for _ in range(FAILURES):
        await api.server.with_token(stranger.token(sub="ann")).get("/v1/me", expect=401)
    await api.server.signed_in("ann").get("/v1/me", expect=429)


async def test_failures_are_counted_where_credentials_stand_in_the_other_header(api: Api) -> None:
    for _ in range(FAILURES):
        await api.anonymous.get("/v1/me", expect=401, headers={"X-API-Key": "nonsense"})
    await api.anonymous.get("/v1/me", expect=429, headers={"X-API-Key": "nonsense"})
    # One more proxy in front says who it was, and the client cannot say that it was another.
    await api.anonymous.get("/v1/me", expect=401, headers={"X-API-Key": "nonsense", **from_("192.0.2.9")["headers"]})


async def test_refusals_are_told_in_log_and_metrics_without_secrets(api: Api, log: io.StringIO) -> None:
    token = keys.generate("test").token
    for _ in range(FAILURES):
        await api.server.with_token(token).get("/v1/me", expect=401)
    await api.server.with_token(token).get("/v1/me", expect=429)
    assert [line["status"] for line in lines(log) if line["message"] == "request"] == [401] * FAILURES + [429]
    assert token not in log.getvalue()
    told = (await api.anonymous.get("/metrics")).raw.decode()
    assert re.search(r'crafely_rate_limit_refusals_total\{limit="address"\} [1-9]', told)
    assert "crafely_rate_limit_storage_away 0.0" in told
    assert token not in told


async def test_a_limit_counts_requests_that_arrive_at_once(own: Server) -> None:
    caller = await own.caller("ann")
    own.sql("update api_keys set rate_limit = 10 where user_id = 'ann'")
    token = {"Authorization": f"Bearer {caller.token}"}

    async def ask() -> int:
        async with own._http.get("/v1/me", headers=token) as response:
            return response.status

    statuses = await asyncio.gather(*(ask() for _ in range(40)))
    # A minute may end meanwhile.
    assert 10 <= statuses.count(200) <= 20
    assert statuses.count(200) + statuses.count(429) == 40
