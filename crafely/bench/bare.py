"""What the API is compared with: ordinary aiohttp handlers that do only what cannot be left out.

``verify`` decodes the body and encodes an answer, and looks nothing up. ``usage`` decodes a record and inserts it, with
psycopg and its pool as they are when nobody tunes them. Each is a process of its own: ``python -m crafely.bench.bare``.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import msgspec
import psycopg_pool
import uvloop
from aiohttp import web

from crafely.bench import statement

Handler = Callable[[web.Request], Awaitable[web.Response]]
# As many connections as the server has that it is compared with.
POOL = 10


class VerifyBody(msgspec.Struct):
    """What is asked."""

    key: str
    permissions: list[str] = []


class UsageBody(msgspec.Struct, rename="camel"):
    """One record, as the API takes it."""

    provider: str | None = None
    model: str | None = None
    type: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_total: int | None = None
    cost: Decimal | None = None
    currency: str = "usd"
    event_id: str | None = None


class UsageAnswer(msgspec.Struct, rename="camel"):
    """What is answered: as much as the API does."""

    data: list[dict[str, Any]]
    recorded: int = 1
    duplicates: int = 0
    invalid: int = 0


class UsageSetup(msgspec.Struct):
    """The database, and for each token the user and the key that it stands for: nobody is authenticated."""

    url: str
    callers: dict[str, tuple[str, str]]


def verify(example: bytes) -> Handler:
    """Answers as the example does, encoded anew each time from a Struct with its fields."""
    fields: dict[str, Any] = msgspec.json.decode(example)
    kind = msgspec.defstruct("Answer", [(name, type(value)) for name, value in fields.items()])
    answer = kind(**fields)
    decode = msgspec.json.Decoder(VerifyBody).decode
    encode = msgspec.json.Encoder().encode

    async def handle(request: web.Request) -> web.Response:
        decode(await request.read())
        return web.Response(body=encode(answer), content_type="application/json")

    return handle


def usage(callers: dict[str, tuple[str, str]], pool: psycopg_pool.AsyncConnectionPool[Any]) -> Handler:
    """Inserts each record by itself."""
    decode = msgspec.json.Decoder(UsageBody).decode
    encode = msgspec.json.Encoder().encode
    insert = statement("plain_insert")

    async def handle(request: web.Request) -> web.Response:
        body = decode(await request.read())
        user_id, api_key_id = callers[request.headers["Authorization"].removeprefix("Bearer ")]
        total = (body.tokens_in or 0) + (body.tokens_out or 0)
        values = msgspec.structs.asdict(body) | {"user_id": user_id, "api_key_id": api_key_id, "tokens_total": total}
        async with pool.connection() as connection:
            await connection.execute(insert, values)
        answer = UsageAnswer([{"status": "recorded", "id": None, "duplicate": False, "errors": []}])
        return web.Response(status=201, body=encode(answer), content_type="application/json")

    return handle


async def serve(path: str, handler: Handler) -> None:
    """Serves one handler on a free port, which is printed, until the process is stopped."""
    app = web.Application()
    app.router.add_post(path, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sys.stdout.write(f"port {runner.addresses[0][1]}\n")
    sys.stdout.flush()
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _serve_usage(setup: UsageSetup) -> None:
    options = {"options": "-c role=crafely_meter"}
    async with psycopg_pool.AsyncConnectionPool(setup.url, min_size=POOL, kwargs=options, open=False) as pool:
        await serve("/v1/usage", usage(setup.callers, pool))


def main() -> None:
    """``verify`` or ``usage``; reads its example, or its setup, from standard input."""
    told = sys.stdin.buffer.read()
    try:
        if sys.argv[1] == "verify":
            uvloop.run(serve("/v1/api-keys/verify", verify(told)))
        else:
            uvloop.run(_serve_usage(msgspec.json.decode(told, type=UsageSetup)))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
