"""``/v1/usage``, end to end: what was put in comes out, to the twelfth place."""

import asyncio
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from crafely.api import ROUTES, openapi
from crafely.api.services import EVENT_WINDOW
from crafely.api.usage_records import LATEST
from tests.api.conftest import Api, Client, introduce, serving
from tests.auth.conftest import Signer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Model, type, and US dollars for a million tokens in and out, from the providers' price lists.
PRICES = [
    ("openai", "gpt-4o", "chat", "2.50", "10.00"),
    ("openai", "gpt-4o-mini", "chat", "0.15", "0.60"),
    ("openai", "text-embedding-3-small", "embeddings", "0.02", "0"),
    ("anthropic", "claude-sonnet-4-5", "chat", "3.00", "15.00"),
    ("anthropic", "claude-haiku-4-5", "chat", "1.00", "5.00"),
    ("google", "gemini-2.5-flash", "chat", "0.30", "2.50"),
]
MILLION = Decimal(1_000_000)
# Noon of yesterday: never near the month's or the day's end that a test is not about.
NOON = (datetime.now(UTC) - timedelta(days=1)).replace(hour=12, minute=0, second=0, microsecond=0)


def call(number: int, **fields: Any) -> dict[str, Any]:
    """One call of some model at its real price: 100 of them make a week."""
    provider, model, kind, price_in, price_out = PRICES[number % len(PRICES)]
    tokens_in, tokens_out = 20 + number * 37, number * 11 if Decimal(price_out) else 0
    cost = (tokens_in * Decimal(price_in) + tokens_out * Decimal(price_out)) / MILLION
    return {
        "provider": provider,
        "model": model,
        "type": kind,
        "tokensIn": tokens_in,
        "tokensOut": tokens_out,
        "cost": f"{cost:f}",
        "createdAt": (NOON - timedelta(hours=number)).isoformat(),
        **fields,
    }


def sums(calls: list[dict[str, Any]], *by: str) -> dict[tuple[Any, ...], tuple[int, int, int, int, Decimal]]:
    """The sums of some calls by some fields, done the long way."""
    totals: dict[tuple[Any, ...], list[Any]] = defaultdict(lambda: [0, 0, 0, 0, Decimal(0)])
    for one in calls:
        row = {**one, "day": one["createdAt"][:10]}
        tokens_in, tokens_out = row["tokensIn"], row["tokensOut"]
        for place, value in enumerate((1, tokens_in, tokens_out, tokens_in + tokens_out, Decimal(row["cost"]))):
            totals[tuple(row[name] for name in by)][place] += value
    return {key: (total[0], total[1], total[2], total[3], total[4]) for key, total in totals.items()}


def answered(rows: list[dict[str, Any]], *by: str) -> dict[tuple[Any, ...], tuple[int, int, int, int, Decimal]]:
    return {
        tuple(row[name] for name in by): (
            row["records"],
            row["tokensIn"],
            row["tokensOut"],
            row["tokensTotal"],
            Decimal(row["cost"]),
        )
        for row in rows
    }


async def key_id(caller: Client) -> str:
    return str((await caller.get("/v1/me"))["apiKeyId"])


async def test_one_record_is_stored_as_it_was_given(api: Api) -> None:
    record = {
        "eventId": "evt_1",
        "provider": "openai",
        "model": "text-embedding-3-small",
        "type": "embeddings",
        "tokensIn": 20,
        "tokensOut": 0,
        "cost": "0.0000004",
        "currency": "eur",
        "metadata": {"region": "eu", "nested": {"deep": [1, 2.5, None, "ü"]}},
        "createdAt": "2026-01-01T00:00:00Z",
    }
    record["createdAt"] = NOON.strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = await api.alice.post("/v1/usage", record)
    assert [answer[name] for name in ("recorded", "duplicates", "invalid")] == [1, 0, 0]
    [row] = (await api.alice.get("/v1/usage"))["data"]
    assert row["id"] == answer["data"][0]["id"]
    assert row["id"].startswith("use_")
    assert row["apiKeyId"] == await key_id(api.alice)
    # Twenty tokens at $0.02 a million: nothing is rounded, nothing is written with an exponent.
    assert row["cost"] == "0.000000400000"
    assert row["tokensTotal"] == 20
    assert {name: row[name] for name in record if name != "cost"} == {
        name: value for name, value in record.items() if name != "cost"
    }


async def test_an_empty_record_is_a_call_of_which_nothing_is_known(api: Api) -> None:
    await api.alice.post("/v1/usage", {})
    [row] = (await api.alice.get("/v1/usage"))["data"]
    unknown = ("eventId", "provider", "model", "type", "tokensIn", "tokensOut", "tokensTotal", "cost", "metadata")
    assert [row[name] for name in unknown] == [None] * len(unknown)
    assert row["currency"] == "usd"
    [day] = (await api.alice.get("/v1/usage/daily"))["data"]
    assert (day["records"], day["tokensTotal"], Decimal(day["cost"])) == (1, 0, Decimal(0))


@pytest.mark.parametrize(
    ("tokens", "total"),
    [
        ({"tokensIn": 5}, 5),
        ({"tokensOut": 7}, 7),
        ({"tokensIn": 5, "tokensOut": 7}, 12),
        ({"tokensIn": 5, "tokensOut": 7, "tokensTotal": 100}, 100),
        ({}, None),
    ],
)
async def test_the_total_is_the_sum_where_it_is_not_sent(api: Api, tokens: dict[str, int], total: int | None) -> None:
    await api.alice.post("/v1/usage", tokens)
    assert (await api.alice.get("/v1/usage"))["data"][0]["tokensTotal"] == total


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("0.000000000001", "0.000000000001"),
        ("99999999.999999999999", "99999999.999999999999"),
        (0.0000004, "0.000000400000"),
        ("4e-7", "0.000000400000"),
        (0, "0.000000000000"),
        ("12", "12.000000000000"),
    ],
)
async def test_a_cost_is_kept_to_the_twelfth_place(api: Api, sent: object, kept: str) -> None:
    await api.alice.post("/v1/usage", {"cost": sent})
    assert (await api.alice.get("/v1/usage"))["data"][0]["cost"] == kept
    [day] = (await api.alice.get("/v1/usage/daily"))["data"]
    assert day["cost"] == kept


async def test_a_thousand_records_come_out_with_the_sums_that_were_put_in(api: Api) -> None:
    calls = [call(number % 500) for number in range(1000)]
    answer = await api.alice.post("/v1/usage", calls)
    assert (answer["recorded"], len(answer["data"])) == (1000, 1000)
    params = {"from": (NOON - timedelta(days=30)).isoformat(), "to": (NOON + timedelta(days=1)).isoformat()}
    for by in (("provider", "model"), ("day",), ("type",), ("day", "provider", "model", "type")):
        rows = (await api.alice.get("/v1/usage/stats", params={**params, "groupBy": ",".join(by)}))["data"]
        assert answered(rows, *by) == sums(calls, *by)
        assert all(row[name] is None for row in rows for name in {"day", "provider", "model", "type"} - {*by})
    daily = (await api.alice.get("/v1/usage/daily"))["data"]
    assert answered(daily, "day") == sums(calls, "day")
    assert [row["day"] for row in daily] == sorted({row["day"] for row in daily}, reverse=True)
    listed = await api.alice.all("/v1/usage", take="100")
    assert {row["id"] for row in listed} == {one["id"] for one in answer["data"]}
    assert sum(Decimal(row["cost"]) for row in listed) == sum(Decimal(one["cost"]) for one in calls)
    assert [row["createdAt"] for row in listed] == sorted((row["createdAt"] for row in listed), reverse=True)


async def test_sums_of_a_range_that_cuts_days_are_exact(api: Api) -> None:
    calls = [call(number) for number in range(100)]
    await api.alice.post("/v1/usage", calls)
    # Both ends within a day; within one single day; from a moment that is one of the calls, to one that is too.
    for first, last in ((80, 5), (3, 1), (50, 26), (99, -1)):
        start, end = NOON - timedelta(hours=first), NOON - timedelta(hours=last)
        inside = [one for one in calls if start <= datetime.fromisoformat(one["createdAt"]) < end]
        params = {"from": start.isoformat(), "to": end.isoformat()}
        stats = (await api.alice.get("/v1/usage/stats", params=params))["data"]
        assert answered(stats, "provider", "model") == sums(inside, "provider", "model")
        assert len(await api.alice.all("/v1/usage", **params)) == len(inside) == first - last


async def test_sums_of_the_last_days_need_no_record(api: Api) -> None:
    """Whole days, today with them, come from the daily sums: what they cost does not grow with a day's records."""
    now = datetime.now(UTC)
    calls = [call(number, createdAt=(now - timedelta(days=number)).isoformat()) for number in range(35)]
    await api.alice.post("/v1/usage", calls)
    api.server.sql("delete from usage where user_id = %s", api.alice.user)
    shown = [one for one in calls if one["createdAt"][:10] > (now - timedelta(days=30)).date().isoformat()]
    for path in ("/v1/usage/stats?groupBy=day", "/v1/usage/daily"):
        assert answered((await api.alice.get(path))["data"], "day") == sums(shown, "day")


async def test_currencies_are_never_added_together(api: Api) -> None:
    await api.alice.post("/v1/usage", [call(0, currency="usd", cost="1"), call(0, currency="eur", cost="2")])
    for path in ("/v1/usage/stats", "/v1/usage/daily"):
        rows = (await api.alice.get(path))["data"]
        assert {row["currency"]: Decimal(row["cost"]) for row in rows} == {"usd": 1, "eur": 2}


async def test_each_record_of_an_array_stands_for_itself(api: Api) -> None:
    first = await api.alice.post("/v1/usage", call(0, eventId="before"))
    bob = await key_id(api.bob)
    answer = await api.alice.post(
        "/v1/usage",
        [
            call(1),
            call(1, cost="-1"),
            call(1, eventId="before"),
            call(1, apiKeyId=bob),
            call(2, eventId="twice"),
            call(3, eventId="twice"),
            {"unknown": 1},
            "no object",
            call(4),
        ],
    )
    outcomes = answer["data"]
    assert [one["status"] for one in outcomes] == [
        *("recorded", "invalid", "duplicate", "invalid", "recorded", "duplicate", "invalid", "invalid", "recorded")
    ]
    assert [answer[name] for name in ("recorded", "duplicates", "invalid")] == [3, 2, 4]
    assert outcomes[2]["id"] == first["data"][0]["id"]
    assert outcomes[5]["id"] == outcomes[4]["id"]
    assert [one["duplicate"] for one in outcomes] == [one["status"] == "duplicate" for one in outcomes]
    places = [error["pointer"] for one in outcomes for error in one["errors"]]
    assert places == ["/1/cost", "/3/apiKeyId", "/6/unknown", "/7"]
    stored = [call(0), call(1), call(2), call(4)]
    assert answered((await api.alice.get("/v1/usage/daily"))["data"], "day") == sums(stored, "day")
    assert len(await api.alice.all("/v1/usage")) == 4
    assert await api.bob.all("/v1/usage") == []


async def test_when_no_record_can_be_stored_the_answer_is_422(api: Api) -> None:
    refused = await api.alice.post("/v1/usage", [call(0, cost="-1"), call(0, tokensIn=-1)], expect=422)
    assert refused.places == ["/0/cost", "/1/tokensIn"]
    assert await api.alice.all("/v1/usage") == []


async def test_a_retry_is_counted_once_and_says_so(api: Api) -> None:
    record = call(5, eventId="evt")
    first = (await api.alice.post("/v1/usage", record))["data"][0]
    again = (await api.alice.post("/v1/usage", {**record, "cost": "100"}))["data"][0]
    assert (first["status"], again["status"], again["duplicate"]) == ("recorded", "duplicate", True)
    assert again["id"] == first["id"]
    # An event id is its user's own.
    assert (await api.bob.post("/v1/usage", record))["data"][0]["status"] == "recorded"
    assert answered((await api.alice.get("/v1/usage/daily"))["data"], "day") == sums([record], "day")


async def test_many_writers_at_once_lose_nothing(api: Api) -> None:
    batches = [[call(number, eventId=f"e{(batch * 7 + number) % 60}") for number in range(30)] for batch in range(8)]
    answers = await asyncio.gather(*(api.alice.post("/v1/usage", batch) for batch in batches))
    assert sum(answer["recorded"] for answer in answers) == 60
    assert sum(answer["duplicates"] for answer in answers) == 8 * 30 - 60
    listed = await api.alice.all("/v1/usage", take="100")
    assert sorted(row["eventId"] for row in listed) == sorted(f"e{number}" for number in range(60))
    daily = (await api.alice.get("/v1/usage/daily"))["data"]
    assert sum(row["records"] for row in daily) == 60
    assert sum(Decimal(row["cost"]) for row in daily) == sum(Decimal(row["cost"]) for row in listed)


async def test_single_records_sent_together_are_answered_each_for_itself(api: Api) -> None:
    """They share statements, and nothing else: not the users, not a bad key, not an event that came twice."""
    sent = [call(number, eventId=f"e{number % 20}") for number in range(30)]
    answers = await asyncio.gather(
        *(api.alice.post("/v1/usage", record) for record in sent),
        *(api.bob.post("/v1/usage", record) for record in sent[:5]),
        *(api.alice.post("/v1/usage", call(0, apiKeyId="key_nobodys"), expect=422) for _ in range(5)),
    )
    ids = defaultdict(set)
    for record, answer in zip(sent, answers, strict=False):
        ids[record["eventId"]].add(answer["data"][0]["id"])
    stored = {row["eventId"]: row["id"] for row in await api.alice.all("/v1/usage", take="100")}
    # None: the first was being stored in that very moment.
    assert all({stored[event]} <= ids[event] <= {stored[event], None} for event in ids)
    assert sum(answer["recorded"] for answer in answers[:30]) == len(stored) == 20
    assert sum(answer["recorded"] for answer in answers[30:35]) == len(await api.bob.all("/v1/usage")) == 5
    assert all(answer.places == ["/apiKeyId"] for answer in answers[35:])
    daily = (await api.alice.get("/v1/usage/daily"))["data"]
    # Of two with one event that come at once, either may be the first.
    first = [record for record, answer in zip(sent, answers, strict=False) if answer["recorded"]]
    assert answered(daily, "day") == sums(first, "day")


async def test_a_full_queue_answers_503_and_stores_nothing_of_it(module_database: str, signer: Signer) -> None:
    async with serving(module_database, signer, usage_queue=1) as server:
        alice = (await introduce(server)).alice
        statuses: list[int] = []

        async def send(number: int) -> None:
            headers = {"Authorization": f"Bearer {alice.token}"}
            async with alice._http.post("/v1/usage", json=call(number), headers=headers) as response:
                statuses.append(response.status)
                if response.status == 503:
                    assert int(response.headers["Retry-After"]) >= 1

        await asyncio.gather(*(send(number) for number in range(60)))

        assert set(statuses) == {201, 503}
        assert len(await alice.all("/v1/usage", take="100")) == statuses.count(201)


async def test_the_description_says_for_how_long_an_event_is_remembered() -> None:
    record = json.loads(openapi.build(ROUTES))["components"]["schemas"]["UsageRecord"]
    said = json.dumps(record["properties"]["eventId"])
    assert f"remembered for {EVENT_WINDOW.days} days" in said
    assert EVENT_WINDOW > LATEST


async def test_usage_is_listed_by_key_provider_model_and_type(api: Api) -> None:
    other = await api.alice.post("/v1/api-keys", {"permissions": ["usage:write"]})
    await api.alice.post("/v1/usage", [call(number) for number in range(12)])
    await api.server.with_token(other["key"]).post("/v1/usage", call(0))

    async def models(**params: str) -> list[str]:
        return [row["model"] for row in await api.alice.all("/v1/usage", take="5", **params)]

    assert len(await models()) == 13
    assert await models(apiKeyId=other["id"]) == ["gpt-4o"]
    assert await models(model="gpt-4o-mini") == ["gpt-4o-mini"] * 2
    assert sorted(set(await models(provider="anthropic"))) == ["claude-haiku-4-5", "claude-sonnet-4-5"]
    assert await models(type="embeddings") == ["text-embedding-3-small"] * 2
    assert await models(apiKeyId=other["id"], provider="anthropic") == []
    assert await models(apiKeyId=await key_id(api.bob)) == []


async def test_a_session_names_the_key_that_it_records_for(api: Api) -> None:
    alice = api.server.signed_in(api.alice.user)
    refused = await alice.post("/v1/usage", call(0), expect=422)
    assert refused.places == ["/apiKeyId"]
    own = await key_id(api.alice)
    await alice.post("/v1/usage", call(0, apiKeyId=own))
    refused = await alice.post("/v1/usage", call(0, apiKeyId=await key_id(api.bob)), expect=422)
    assert refused.places == ["/apiKeyId"]
    assert [row["apiKeyId"] for row in await alice.all("/v1/usage")] == [own]


async def test_sums_come_in_pages(api: Api) -> None:
    calls = [call(number * 24) for number in range(10)]
    await api.alice.post("/v1/usage", calls)
    for path in ("/v1/usage/stats?groupBy=day", "/v1/usage/daily"):
        assert answered(await api.alice.all(path, take="3"), "day") == sums(calls, "day")


async def test_days_are_those_of_utc_and_the_last_day_is_left_out(api: Api) -> None:
    midnight = NOON.replace(hour=0)
    before = (midnight - timedelta(microseconds=1)).astimezone().isoformat()
    await api.alice.post("/v1/usage", [call(0, createdAt=midnight.isoformat()), call(0, createdAt=before)])
    today, yesterday = str(midnight.date()), str(midnight.date() - timedelta(days=1))
    params = {"from": yesterday, "to": today}
    assert [row["day"] for row in (await api.alice.get("/v1/usage/daily"))["data"]] == [today, yesterday]
    assert [row["day"] for row in (await api.alice.get("/v1/usage/daily", params=params))["data"]] == [yesterday]


async def test_only_administrators_see_the_days_of_everybody(api: Api) -> None:
    await api.alice.post("/v1/usage", [call(0), call(1)])
    await api.bob.post("/v1/usage", call(2))
    refused = await api.alice.get("/v1/usage/daily-by-user", expect=403)
    assert refused["detail"] == "This takes the permission admin."
    rows = await api.admin.all("/v1/usage/daily-by-user", take="1")
    users = {row["userId"]: row["records"] for row in rows}
    assert (users[api.alice.user], users[api.bob.user]) == (2, 1)
