"""``crafely bench usage``: records of usage over HTTP with one worker, next to a handler that inserts each by itself.

The handler has psycopg and its pool as they come, and stores less: no daily sums, and no ledger of event ids. All sides
get the same bodies, from the same client. At the end what is stored is counted: every acknowledged record, once.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec
import uvloop
from rich.progress import Progress

from crafely.bench import BenchError, bare, load, servers
from crafely.bench.load import COUNTER, Job
from crafely.bench.place import Place, execute
from crafely.bench.report import Bound, Report, facts, results
from crafely.bench.rounds import Measured, Plan, Sample, Side, interleave
from crafely.bench.seed import KEYS_PER_USER, Seed, row_id, seed, user_id
from crafely.bench.servers import Address
from crafely.config import Settings
from crafely.db.session import connect

PATH = "/v1/usage"
CONNECTIONS = 64
# Each of these sends whole batches.
BATCH_CONNECTIONS = 4
BATCH = 1000
# Who sends: several keys each of several users.
USERS = 8
KEYS = 4
MODELS = (
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-4o"),
    ("anthropic", "claude-3-5-haiku-20241022"),
    ("google", "gemini-2.0-flash"),
)
SINGLE, SINGLE_ID = "one record, coalesced", "one record with eventId, coalesced"
PLAIN, PLAIN_ID = "one record, plain insert", "one record with eventId, plain insert"
BATCHES, BATCHES_ID = f"batches of {BATCH:,}", f"batches of {BATCH:,} with eventId"

# A record with an eventId goes into the ledger, too, and is looked for there; the plain insert would count it twice.
WANTED = {SINGLE: 4.0, SINGLE_ID: 3.0}


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    rows: int = 10_000
    plan: Plan = Plan()


class Stored:
    """How many records have been acknowledged."""

    def __init__(self) -> None:
        self.all = 0
        # Those that our server stored, and so has summed.
        self.summed = 0


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Measures on an empty table of usage."""
    url = place.database("usage")
    found = seed(url, settings, progress, keys=options.rows)
    with connect(url) as connection:
        execute(connection, "clear_usage")
    circumstances = facts(url, {"api_keys": options.rows})
    stored = Stored()
    measured = uvloop.run(_measure(url, found, stored, options.plan, progress))
    _reconcile(url, stored)
    notes = [
        f"{CONNECTIONS} connections for single records, {BATCH_CONNECTIONS} for batches; {USERS} users of {KEYS} keys.",
        f"Counted at the end: {stored.all:,} acknowledged records, each of them stored once, and the daily sums agree.",
    ]
    report = Report(command="usage", facts=circumstances, plan=options.plan, sides=results(measured), notes=notes)
    ratios = [
        report.ratio("one record: coalesced / plain insert", SINGLE, PLAIN),
        report.ratio("one record with eventId: coalesced / plain insert", SINGLE_ID, PLAIN_ID),
    ]
    bounds = [Bound(ratio.name, ">=", WANTED[ratio.side], ratio.median) for ratio in ratios]
    bounds += [Bound(f"{name}, events/s", ">=", 10_000, report.side(name).median) for name in (BATCHES, BATCHES_ID)]
    return msgspec.structs.replace(report, ratios=ratios, bounds=bounds)


async def _measure(url: str, found: Seed, stored: Stored, plan: Plan, progress: Progress) -> list[Measured]:
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(servers.crafely(url))
        setup = bare.UsageSetup(url, {found.token(n): (user_id(n), row_id(n)) for n in _senders()})
        plain = await stack.enter_async_context(servers.bare("usage", msgspec.json.encode(setup)))
        sides = [
            _singles(SINGLE, ours, found, stored, event_id=False),
            _singles(PLAIN, plain, found, stored, event_id=False),
            _singles(SINGLE_ID, ours, found, stored, event_id=True),
            _singles(PLAIN_ID, plain, found, stored, event_id=True),
            _batches(BATCHES, ours, found, stored, event_id=False),
            _batches(BATCHES_ID, ours, found, stored, event_id=True),
        ]
        return await interleave(sides, plan, progress)


def _senders() -> list[int]:
    """Numbers of keys: the first few of each of the first users."""
    return [user * KEYS_PER_USER + number for user in range(USERS) for number in range(1, KEYS + 1)]


def record(number: int, event: str | None) -> dict[str, object]:
    """A record, as it is sent, and its eventId where it has one."""
    provider, model = MODELS[number % len(MODELS)]
    made: dict[str, object] = {
        "provider": provider,
        "model": model,
        "type": "chat",
        "tokensIn": 200 + number * 37 % 800,
        "tokensOut": 50 + number * 11 % 300,
        "cost": f"0.{number % 5000 + 1:06d}",
    }
    return made if event is None else {**made, "eventId": event}


def _event(event_id: bool, run: str, number: int) -> str | None:
    """The counter makes a request's events its own, the run those of a measurement, the number those of a batch."""
    return f"{run}-{COUNTER.decode()}-{number:04d}" if event_id else None


class _Runs:
    """Names for measurements, so that no event comes twice."""

    def __init__(self, name: str) -> None:
        self._name = name.replace(" ", "-").replace(",", "")
        self._count = 0

    def next(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"


def _singles(name: str, server: Address, found: Seed, stored: Stored, *, event_id: bool) -> Side:
    runs = _Runs(name)

    async def measure(seconds: float) -> Sample:
        run = runs.next()
        tokens = [found.token(number) for number in _senders()]
        records = [record(number, _event(event_id, run, 0)) for number in range(4 * len(tokens))]
        bodies = [(tokens[number % len(tokens)], record) for number, record in enumerate(records)]
        return await _post(server, bodies, seconds, CONNECTIONS, 1, stored, summed=name in {SINGLE, SINGLE_ID})

    return Side(name, measure, "single records", "events/s")


def _batches(name: str, server: Address, found: Seed, stored: Stored, *, event_id: bool) -> Side:
    runs = _Runs(name)

    async def measure(seconds: float) -> Sample:
        run = runs.next()
        bodies = [
            (found.token(number), [record(position, _event(event_id, run, position)) for position in range(BATCH)])
            for number in _senders()[::KEYS]
        ]
        return await _post(server, bodies, seconds, BATCH_CONNECTIONS, BATCH, stored, summed=True)

    return Side(name, measure, "batches", "events/s")


def recording(
    server: Address, bodies: Sequence[tuple[str, object]], seconds: float, connections: int, events: int
) -> Job:
    """A load that records usage: each body by the token that goes with it, of so many records, all of them new."""
    encode = msgspec.json.encode
    return Job(
        host=server.host,
        port=server.port,
        connections=connections,
        seconds=seconds,
        requests=[load.request("POST", PATH, server.host, token, encode(body)) for token, body in bodies],
        status=201,
        needle=f'"recorded":{events},'.encode(),
    )


async def _post(
    server: Address,
    bodies: Sequence[tuple[str, object]],
    seconds: float,
    connections: int,
    events: int,
    stored: Stored,
    *,
    summed: bool,
) -> Sample:
    job = recording(server, bodies, seconds, connections, events)
    sample = await load.measure(job, events=events)
    stored.all += sample.count
    stored.summed += sample.count if summed else 0
    return sample


def _reconcile(url: str, stored: Stored) -> None:
    """Raises BenchError unless what was acknowledged is what is there."""
    with connect(url) as connection:
        row = execute(connection, "count_usage").fetchone()
    if row != (stored.all, stored.summed):
        raise BenchError(f"acknowledged and summed: {stored.all}, {stored.summed}; stored: {row}")
