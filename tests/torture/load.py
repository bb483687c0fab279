"""Clients that record usage, try again after errors, and remember everything they were told."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import aiohttp
import psycopg

# How long a client waits for an answer before it believes that it will not come, and for its next try.
ANSWER_SECONDS, PAUSE_SECONDS = 10, 0.05
STORED = "select metadata ->> 'marker', id, event_id from usage"
# Events without their record, records without their event, and events that name another record.
LEDGER = """
    select count(*)
    from usage_events e
    full join (select user_id, event_id, id from usage where event_id is not null) u
        on u.user_id = e.user_id and u.event_id = e.event_id
    where u.id is distinct from e.usage_id
"""
MODELS = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash")


@dataclass
class Told:
    """One record: whether it has an event id, and what the server has said of it."""

    event: bool
    acknowledged: bool = False
    # How often it was answered as newly recorded, and the ids that were given for it.
    recorded: int = 0
    ids: set[str] = field(default_factory=set)


class Load:
    """Many clients at once. A record's marker, in its metadata, tells it apart; one with an event id has the same."""

    def __init__(self, address: str, keys: list[str], clients: int) -> None:
        self._address = address
        self._keys = keys
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._end = asyncio.Event()
        self.told: dict[str, Told] = {}
        # What became of the requests: statuses, and the names of errors.
        self.outcomes: Counter[str] = Counter()
        self.in_flight = 0
        self.acknowledged = 0
        # When the latest of the requests that were acknowledged had been sent.
        self.latest = 0.0

    async def __aenter__(self) -> "Load":
        self._http = aiohttp.ClientSession(
            self._address,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
        )
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end.set()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self._http.close()

    async def _client(self, number: int) -> None:
        dice = random.Random(number)  # noqa: S311 - a load, no secret
        key = self._keys[number % len(self._keys)]
        mine: list[dict[str, Any]] = []
        while not self._end.is_set():
            event = dice.random() < 0.7
            records = [self._new(dice, number, event) for _ in range(dice.choice([1, 1, 1, dice.randint(2, 60)]))]
            if event and mine and dice.random() < 0.1:
                # A client that has forgotten that it was answered.
                records[0] = dice.choice(mine)
            mine += records if event else []
            while not await self._post(key, records) and event and (not self._end.is_set() or dice.random() < 0.5):
                # Without an event id to try again would be to count twice. Some give up.
                if dice.random() < 0.05:
                    break
                await asyncio.sleep(PAUSE_SECONDS)

    def _new(self, dice: random.Random, number: int, event: bool) -> dict[str, Any]:
        marker = f"{number}-{len(self.told)}"
        self.told[marker] = Told(event)
        record: dict[str, Any] = {
            "provider": dice.choice(["openai", None]),
            "model": dice.choice(MODELS),
            "tokensIn": dice.randrange(1000),
            "cost": f"{Decimal(dice.randrange(10**9)) / 10**12:f}",
            "metadata": {"marker": marker},
        }
        return {**record, "eventId": marker} if event else record

    async def _post(self, key: str, records: list[dict[str, Any]]) -> bool:
        """Whether they were acknowledged."""
        begin = time.monotonic()
        self.in_flight += 1
        outcome = ""
        try:
            body = records[0] if len(records) == 1 else records
            headers = {"Authorization": f"Bearer {key}"}
            async with self._http.post("/v1/usage", json=body, headers=headers) as response:
                outcome = str(response.status)
                if response.status != 201:
                    return False
                answer = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            outcome = type(error).__name__
            return False
        finally:
            self.in_flight -= 1
            self.outcomes[outcome] += 1
        self.latest = max(self.latest, begin)
        self._note(records, answer["data"])
        return True

    def _note(self, records: list[dict[str, Any]], outcomes: list[dict[str, Any]]) -> None:
        for record, outcome in zip(records, outcomes, strict=True):
            told = self.told[record["metadata"]["marker"]]
            assert outcome["status"] in {"recorded", "duplicate"}, outcome
            self.acknowledged += not told.acknowledged
            told.acknowledged = True
            told.recorded += outcome["status"] == "recorded"
            with suppress(KeyError):
                # null: the first of the same event was being stored in that very moment.
                told.ids |= {outcome["id"]} - {None}

    async def more(self, count: int, seconds: float) -> None:
        """Waits until so many more records are acknowledged."""
        goal, end = self.acknowledged + count, time.monotonic() + seconds
        while self.acknowledged < goal:
            assert time.monotonic() < end, f"{seconds} s without {count} answers; {dict(self.outcomes)}"
            await asyncio.sleep(0.01)

    async def recovered(self, since: float, seconds: float) -> float:
        """Waits for the answer to a request sent later than a moment. Gives the seconds since then."""
        while self.latest <= since:
            assert time.monotonic() < since + seconds, f"no answer after {seconds} s; {dict(self.outcomes)}"
            await asyncio.sleep(0.01)
        return time.monotonic() - since

    def check(self, connection: psycopg.Connection[Any]) -> int:
        """What was acknowledged is stored, once, and nothing else is. Gives how many records are."""
        rows = connection.execute(STORED).fetchall()
        stored: defaultdict[str, set[str]] = defaultdict(set)
        for marker, id_, event_id in rows:
            assert event_id in {None, marker}
            stored[marker].add(id_)
        told = self.told
        assert stored.keys() <= told.keys()
        assert [marker for marker, one in told.items() if one.acknowledged and not stored[marker]] == []
        assert {marker: ids for marker, ids in stored.items() if len(ids) > 1} == {}
        assert [marker for marker, one in told.items() if one.recorded > 1] == []
        assert [marker for marker, one in told.items() if not one.ids <= stored[marker]] == []
        assert next(iter(connection.execute(LEDGER)))[0] == 0
        return len(rows)
