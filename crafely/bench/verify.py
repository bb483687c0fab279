"""``crafely bench verify``: verifying API keys over HTTP with one worker, next to an aiohttp handler that does nothing.

The handler decodes the same bodies and encodes the same answers, on ordinary aiohttp; what is lost against it is what
verifying costs. The client is the same for all, in a process of its own, and looks into every answer.
"""

import asyncio
import statistics
from collections.abc import Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import msgspec
import uvloop
from rich.progress import Progress

from crafely.auth import keys
from crafely.bench import BenchError, load, servers
from crafely.bench.load import Job
from crafely.bench.place import Place, execute
from crafely.bench.report import Bound, Facts, Report, facts, results
from crafely.bench.rounds import Measured, Plan, Sample, Side, interleave
from crafely.bench.seed import Seed, key_id, seed
from crafely.bench.servers import Address
from crafely.config import Settings
from crafely.db.session import connect

PATH = "/v1/api-keys/verify"
CONNECTIONS = 64
# Keys of a case, at most; a small table has fewer.
KEYS = 256
# Keys that nobody has presented yet, arriving at once, so many times in a measurement.
COLD = 64
BURSTS = 8
# Every request is counted three times, for the caller's key and user and for the key that it presents; none is refused.
LIMITS = {"rate_limit": "1000000000", "rate_limit_user": "1000000000"}
_BODY = msgspec.json.Encoder().encode

WARM, BYPASSED, UNKNOWN, REVOKED, MALFORMED, BARE = "warm", "cache bypassed", "unknown", "revoked", "malformed", "bare"
UNLIMITED = "warm, no rate limits"
ALONE, WITH_COLD = "warm, nothing else", "warm, while 64 cold keys are tried"


class Options(msgspec.Struct, frozen=True):
    """What the command line says."""

    rows: int = 1_000_000
    plan: Plan = Plan()
    # Somebody else's server, and a key that may verify keys.
    url: str | None = None
    key: str | None = None


class Tokens(msgspec.Struct, frozen=True):
    """Whom to ask as, and what to present in each case."""

    caller: str
    cases: dict[str, list[str]]


def bench(place: Place, settings: Settings, options: Options, progress: Progress) -> Report:
    """Measures our own server, on a database of so many keys."""
    url = place.database(str(options.rows))
    found = seed(url, settings, progress, keys=options.rows)
    count = min(KEYS, options.rows // 8)
    tokens = _tokens(found, count)
    with connect(url) as connection:
        numbers = range(count + 1, 2 * count + 1)
        execute(connection, "revoke_some", [key_id(number) for number in numbers])
    circumstances = facts(url, {"api_keys": options.rows})
    measured = uvloop.run(_measure(url, tokens, _cold(found, 2 * count), options.plan, progress))
    report = _report(circumstances, options.plan, measured)
    return msgspec.structs.replace(report, bounds=_bounds(report))


async def _measure(
    url: str, tokens: Tokens, cold: Callable[[], list[str]], plan: Plan, progress: Progress
) -> list[Measured]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(servers.crafely(url, workers=1, **LIMITS))
        bypassed = await stack.enter_async_context(servers.crafely(url, workers=1, key_cache_seconds="0", **LIMITS))
        off = dict.fromkeys(LIMITS, "off")
        unlimited = await stack.enter_async_context(servers.crafely(url, workers=1, **off))
        sides = [_side(UNLIMITED, unlimited, tokens, WARM)]
        sides += [_side(name, server, tokens, name) for name in (WARM, UNKNOWN, REVOKED, MALFORMED)]
        sides.append(_side(BYPASSED, bypassed, tokens, WARM))
        sides.append(await _bare(stack, server, tokens))
        sides.append(_side(ALONE, server, tokens, WARM, group="argon2 and the loop"))
        sides.append(_with_cold(server, tokens, cold))
        for address in (server, bypassed, unlimited):
            for name in tokens.cases:
                await _prime(address, tokens, name)
        return await interleave(sides, plan, progress)


def bench_url(options: Options, progress: Progress) -> Report:
    """Measures somebody else's server with the one key that is given, and invented ones."""
    parts = urlsplit(options.url or "")
    if parts.scheme != "http" or not parts.hostname or options.key is None:
        raise BenchError(
            "--url takes http://host:port and goes with --key-file, a file with a key that may verify keys"
        )
    server = Address(parts.hostname, parts.port or 80)
    cases = {WARM: [options.key], UNKNOWN: _unknown(COLD), MALFORMED: [options.key[:-1] + "!"]}
    measured = uvloop.run(_measure_url(server, Tokens(options.key, cases), options.plan, progress))
    return _report(facts(None, {}), options.plan, measured)


async def _measure_url(server: Address, tokens: Tokens, plan: Plan, progress: Progress) -> list[Measured]:
    async with AsyncExitStack() as stack:
        sides = [_side(name, server, tokens, name) for name in tokens.cases]
        sides.append(await _bare(stack, server, tokens))
        for name in tokens.cases:
            await _prime(server, tokens, name)
        return await interleave(sides, plan, progress)


def _report(circumstances: Facts, plan: Plan, measured: list[Measured]) -> Report:
    notes = [f"{CONNECTIONS} connections, each waiting for its answer; one worker; up to {KEYS} keys of each kind."]
    report = Report(command="verify", facts=circumstances, plan=plan, sides=results(measured), notes=notes)
    names = [one.side.name for one in measured]
    ratios = [report.ratio(f"{name} / bare aiohttp", name, BARE) for name in (WARM, BYPASSED) if name in names]
    ratios += [report.ratio(f"{name} / warm", name, WARM) for name in (UNKNOWN, REVOKED, MALFORMED) if name in names]
    if UNLIMITED in names:
        ratios.append(report.ratio(f"{WARM} / {UNLIMITED}", WARM, UNLIMITED))
    return msgspec.structs.replace(report, ratios=ratios)


# Of rates; «no slower» leaves 5 % to chance, which is what two measurements of the same differ by.
WANTED = {WARM: 0.80, BYPASSED: 0.55, UNKNOWN: 0.95, MALFORMED: 0.95}
# What counting requests may leave of the rate.
LIMITED = 0.90
P99_GROWTH = 3.0


def _bounds(report: Report) -> list[Bound]:
    bounds = [
        Bound(r.name, ">=", LIMITED if r.to == UNLIMITED else WANTED[r.side], r.median)
        for r in report.ratios
        if r.side in WANTED
    ]
    alone, with_cold = report.side(ALONE), report.side(WITH_COLD)
    growth = [
        cold.latency.p99 / quiet.latency.p99
        for quiet, cold in zip(alone.rounds, with_cold.rounds, strict=True)
        if quiet.latency and cold.latency
    ]
    if growth:
        name = f"p99 of warm requests while {COLD} cold keys are tried / without"
        bounds.append(Bound(name, "<", P99_GROWTH, statistics.median(growth)))
    return bounds


_CODES = {WARM: "VALID", UNKNOWN: "NOT_FOUND", REVOKED: "REVOKED", MALFORMED: "MALFORMED"}


def _tokens(found: Seed, count: int) -> Tokens:
    warm = [found.token(number) for number in range(1, count + 1)]
    revoked = [found.token(number) for number in range(count + 1, 2 * count + 1)]
    malformed = [token[:-1] + ("0" if token[-1] != "0" else "1") for token in warm]
    return Tokens(warm[0], {WARM: warm, UNKNOWN: _unknown(count), REVOKED: revoked, MALFORMED: malformed})


def _unknown(count: int) -> list[str]:
    """Keys with the right shape that nobody has."""
    return [keys.generate("live").token for _ in range(count)]


def _cold(found: Seed, spared: int) -> Callable[[], list[str]]:
    """Gives keys that it has not given before, from the highest number down; few where the table is small."""
    left = iter(range(found.keys, spared, -1))

    def take() -> list[str]:
        return [found.token(number) for number, _ in zip(left, range(COLD * BURSTS), strict=False)]

    return take


def request(server: Address, caller: str, token: str) -> bytes:
    """The bytes that ask, as a caller, what a token is worth."""
    return load.request("POST", PATH, server.host, caller, _BODY({"key": token}))


def _job(server: Address, tokens: Tokens, case: str, seconds: float, needle: str | None = None) -> Job:
    return Job(
        host=server.host,
        port=server.port,
        connections=CONNECTIONS,
        seconds=seconds,
        requests=[request(server, tokens.caller, token) for token in tokens.cases[case]],
        needle=_needle(needle or _CODES[case]),
    )


def _needle(code: str) -> bytes:
    return f'"code":"{code}"'.encode()


def _side(name: str, server: Address, tokens: Tokens, case: str, *, group: str = "verify") -> Side:
    async def measure(seconds: float) -> Sample:
        return await load.measure(_job(server, tokens, case, seconds))

    return Side(name, measure, group)


def _with_cold(server: Address, tokens: Tokens, cold: Callable[[], list[str]]) -> Side:
    """Warm requests as ever, of which those are looked at that were on their way while cold keys were."""

    async def measure(seconds: float) -> Sample:
        bursts = [request(server, tokens.caller, token) for token in cold()]
        job = _job(server, tokens, WARM, seconds)
        job = msgspec.structs.replace(job, bursts=bursts, burst=COLD, burst_needle=_needle("VALID"))
        return await load.measure(job, during_bursts=True)

    return Side(WITH_COLD, measure, "argon2 and the loop")


async def _bare(stack: AsyncExitStack, server: Address, tokens: Tokens) -> Side:
    """The handler that does nothing, answering with what the server answers to a warm key."""
    example = await _example(_job(server, tokens, WARM, 0))
    address = await stack.enter_async_context(servers.bare("verify", example))
    return _side(BARE, address, tokens, WARM)


async def _example(job: Job) -> bytes:
    """The body of the answer to the first request of a job. Raises BenchError when it is not the one expected."""
    try:
        reader, writer = await asyncio.open_connection(job.host, job.port)
        writer.write(job.requests[0])
        data = b""
        while (size := load.answer_size(data)) is None or len(data) < size:
            if not (more := await asyncio.wait_for(reader.read(65536), load.SILENCE)):
                break
            data += more
        writer.close()
    except OSError as error:
        raise BenchError(f"nobody answers on {job.host}:{job.port}: {error}") from None
    if job.needle not in data:
        raise BenchError(f"the server does not find the key valid; it answers {data[: load.MAX_EXAMPLE]!r}")
    return data.partition(b"\r\n\r\n")[2]


async def _prime(server: Address, tokens: Tokens, case: str) -> None:
    """Presents every key once, so that none is new when it is measured."""
    job = _job(server, tokens, case, 0)
    for first in range(0, len(job.requests), CONNECTIONS):
        some = job.requests[first : first + CONNECTIONS]
        await load.run(msgspec.structs.replace(job, requests=some, connections=len(some)))
