"""SQL, and other languages, in every text that the description knows: it stays a text."""

from typing import Any

import pytest

from crafely.db.query import statements
from tests.api.conftest import Answer
from tests.attack import report
from tests.attack.conftest import World
from tests.attack.places import Place, places, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACES = places()
PAYLOADS = {
    "a quote": "'",
    "a statement behind a quote": "x'; drop table canary; --",
    "a statement behind a parenthesis": "x') returning (select pg_sleep(600)); delete from canary; --",
    "always true": "' or '1'='1",
    "another table": "' union select hashed_key from api_keys --",
    "a backslash": "\\'; drop table canary; --",
    "dollar quotes": "$$; drop table canary; $$",
    "a comment's end": "*/ drop table canary; /*",
    "concatenated": "'||(select string_agg(hashed_key, '') from api_keys)||'",
    "a parameter of ours": ":user_id",
    "a parameter of the driver's": "%s%(user_id)s{0}{user_id}$1",
    "another user": "x', true), set_config('crafely.user_id', 'victim', false), ('x",
    "another role": "'; reset role; set session authorization postgres; --",
    "a quote in other letters": "\u02bc\uff07\u2019 or 1=1; drop table canary; --",
    "operators of JSON paths": '{"$gt": ""}}\'::jsonb || \'[]',
}
SOME = 4
TRUE = ("' or true --", "x' or user_id = 'victim")


async def test_there_are_places() -> None:
    kinds = {place.kind for place in PLACES}
    assert kinds == {"path", "query", "header", "body"}
    assert len(PLACES) > 150
    named = {str(place) for place in PLACES}
    assert named >= {
        "POST /v1/agents body /name",
        "POST /v1/agents body /tools/0",
        "POST /v1/agents body /{}",
        "POST /v1/api-keys body /usage/provider",
        "POST /v1/api-keys body /permissions/0",
        "POST /v1/usage body /metadata/{}",
        "POST /v1/usage body /0/metadata/name",
        "GET /v1/usage query model",
        "GET /v1/agents/{id} path id",
        "PATCH /v1/agents/{id} header If-Match",
    }


@pytest.mark.parametrize("place", PLACES, ids=str)
async def test_a_text_stays_a_text(world: World, place: Place) -> None:
    known = {"packageId": world.package, "id": await own(world, place), "key": "x"}
    known = {name: value for name, value in known.items() if name != place.name or place.kind != "path"}
    for text in payloads(place):
        path, options = request(place, text, **known)
        answer = await world.strike("SQL in every text", place.method, path, by=by(world, place), **options)
        if place.kind == "header" and place.name == "X-Request-Id":
            assert answer.headers["X-Request-Id"] != text
        if answer.status < 300:
            assert_stored(place, text, answer)


def payloads(place: Place) -> list[str]:
    """All of them with ``make attack``; among the tests some for each place, and every one somewhere."""
    texts, first = [*PAYLOADS.values()], PLACES.index(place)
    return texts if report.PRINT else [texts[(first * SOME + n) % len(texts)] for n in range(SOME)]


def by(world: World, place: Place) -> Any:
    """The attacker; what only administrators may do, an administrator does."""
    return (
        world.admin
        if "/packages" in place.path or "/monitor" in place.path or "by-user" in place.path
        else world.mallory
    )


_own: dict[int, dict[str, str]] = {}


async def own(world: World, place: Place) -> str:
    """The id of something of the attacker's own, so that the statement is reached."""
    noun = place.path.split("/")[2] if place.path.count("/") > 1 else ""
    made = _own.setdefault(id(world), {})
    if noun not in made:
        new: dict[str, Any] = {"agents": {"name": "x", "instructions": ""}, "threads": {"name": "x"}, "api-keys": {}}
        if noun == "packages":
            made[noun] = (await world.admin.post("/v1/packages", {"name": "the attacker's", "price": "1"}))["id"]
        elif noun in new:
            made[noun] = (await world.mallory.post(f"/v1/{noun}", new[noun]))["id"]
        else:
            made[noun] = "nothing"
    return made[noun]


def assert_stored(place: Place, text: str, answer: Answer) -> None:
    """What was taken is kept as it was sent."""
    if place.kind == "body" and len(place.steps) == 1 and place.steps[0] in answer.body:
        assert answer.body[place.steps[0]] == text, place
    if place.kind == "query" and isinstance(answer.body, dict) and place.name in {"name", "model", "provider", "type"}:
        assert all(str(row[place.name]).lower().startswith(text.lower()) for row in answer["data"]), place


@pytest.mark.parametrize("text", [*PAYLOADS.values(), *TRUE], ids=str)
async def test_a_user_of_that_name_is_a_user_like_any_other(world: World, text: str) -> None:
    """A session token's sub is the issuer's word, and goes into the setting that row-level security reads."""
    token = world.server.signer.token(sub=text)
    client = world.server.with_token(token)
    ascii_ = text.isascii() and " " not in text
    for path in ("/v1/me", "/v1/agents", "/v1/threads", "/v1/api-keys", "/v1/usage", "/v1/usage/daily"):
        answer = await world.strike("SQL as a user's name", "GET", path, by=client, expect=[200] if ascii_ else [401])
        if ascii_ and path == "/v1/me":
            assert answer["userId"] == text
        elif ascii_:
            assert answer["data"] == []


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key", "User-Agent", "X-Forwarded-For", "Cookie", "Referer"])
async def test_a_header_that_nobody_describes_stays_one(world: World, header: str) -> None:
    secret = header in {"Authorization", "X-API-Key"}
    credentials = b"" if secret else b"X-API-Key: %b\r\n" % world.mallory.token.encode()
    for text in PAYLOADS.values():
        value = b"Bearer " + text.encode() if header == "Authorization" else text.encode()
        head = b"GET /v1/agents HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + credentials
        sent = b"%b%b: %b\r\n\r\n" % (head, header.encode(), value)
        ((status, _, body),) = await world.raw("SQL in other headers", sent)
        assert status == (401 if secret else 200)
        assert not secret or len(text) < 5 or text.encode() not in body


async def test_the_server_ran_no_statement_but_its_own(world: World) -> None:
    """The last of this page: what a role of ours ran is a file of ours, with one text, or plumbing of ours."""
    if not world.server.sql("select 1 from pg_extension where extname = 'pg_stat_statements'"):
        pytest.skip("the server has no pg_stat_statements")
    texts = world.server.sql(
        "select distinct query, substring(query from 'crafely:(\\w+/\\w+)') from pg_stat_statements s"
        " join pg_roles r on r.oid = s.userid join pg_database d on d.oid = s.dbid"
        " where d.datname = current_database() and rolname ~ '^crafely_[a-z]+$'"
    )
    named = [name for _, name in texts if name is not None]
    assert len(named) > 25
    assert sorted(named) == sorted(set(named))
    assert set(named) <= set(statements)
    plumbing = sorted(text for text, name in texts if name is None)
    for text in plumbing:
        assert "canary" not in text
        assert "pg_sleep" not in text
        assert text.lstrip("( \n").split()[0].lower() in {
            "select",
            "set",
            "begin",
            "commit",
            "listen",
            "rollback",
            "deallocate",
            "reset",
        }, text
    assert len(plumbing) < 20, plumbing
    ((sleeping,),) = world.server.sql("select count(*) from pg_stat_activity where query ~ 'pg_sleep\\(600'")
    assert sleeping <= 1  # this one
