"""Bodies that are small to send and large to read: refused before they cost anything."""

import asyncio
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import SETTINGS
from tests.attack.conftest import World
from tests.attack.places import Place, places, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
LIMIT = SETTINGS.max_body_bytes
BOMB = gzip.compress(b" " * 64 * 2**20, 9)
AGENT = b'{"name": "x", "instructions": "", "tools": %b}'
USAGE = b'{"metadata": %b}'


def nested(opening: bytes, closing: bytes, levels: int = 100_000) -> bytes:
    return opening * levels + b"1" + closing * levels


def named(count: int) -> bytes:
    """An object of so many names. Python's hash is seeded: nobody can choose names that collide."""
    return json.dumps({f"{number:0>8}": number for number in range(count)}).encode()


# Each with the status that it gets.
BODIES: dict[str, tuple[bytes, dict[str, str], int]] = {
    "a gzip bomb": (BOMB, {"Content-Encoding": "gzip"}, 415),
    "a gzip bomb, twice": (gzip.compress(BOMB), {"Content-Encoding": "gzip, gzip"}, 415),
    "deflate": (zlib.compress(b" " * 2**20), {"Content-Encoding": "deflate"}, 415),
    "br": (b"\x1b\x03)\x00\xa4\xcc\xde\xe2\xb3 vA\x00\x0c", {"Content-Encoding": "br"}, 415),
    "zstd": (b"(\xb5/\xfd", {"Content-Encoding": "zstd"}, 415),
    "an encoding in capitals": (BOMB, {"Content-Encoding": "GZIP"}, 415),
    "an encoding behind identity": (BOMB, {"Content-Encoding": "identity, gzip"}, 415),
    "a bomb that says nothing": (BOMB, {}, 400),
    "one byte too many": (b'{"name": "%b"}' % (b"x" * (LIMIT - 11)), {}, 413),
    "arrays, 100,000 levels": (nested(b"[", b"]"), {}, 422),
    "objects, 100,000 levels": (nested(b'{"a":', b"}"), {}, 422),
    "arrays in tools": (AGENT % nested(b"[", b"]"), {}, 422),
    "objects in tools": (AGENT % (b"[" + nested(b'{"a":', b"}") + b"]"), {}, 422),
    "33 levels in tools": (AGENT % nested(b"[", b"]", 33), {}, 422),
    "arrays that do not end": (b"[" * 500_000, {}, 422),
    "objects that do not end": (b'{"a":' * 100_000, {}, 422),
    "tools of 64 KiB and one": (AGENT % (b'["' + b"x" * 65_536 + b'"]'), {}, 422),
    "50,000 names": (named(50_000), {}, 422),
    "5,000 names in tools": (AGENT % (b"[" + named(5_000) + b"]"), {}, 422),
    "a name of 500 KB": (b'{"%b": 1}' % (b"x" * 500_000), {}, 422),
    "a name of escapes": (b'{"%b": 1}' % (b"\\u0041" * 80_000), {}, 422),
    "a million commas": (b"[" + b"," * 1_000_000 + b"]", {}, 422),
    "a number of 500,000 digits": (b'{"name": %b}' % (b"9" * 500_000), {}, 422),
    "a number of 500,000 digits in tools": (AGENT % (b"[" + b"9" * 500_000 + b"]"), {}, 422),
    "1e999999": (AGENT % b"[1e999999]", {}, 422),
    "-1e999999": (AGENT % b"[-1e999999]", {}, 422),
    "1e-999999": (AGENT % b"[1e-999999]", {}, 422),
    "0e999999": (AGENT % b"[0e999999]", {}, 422),
    "an exponent of 500,000 digits": (AGENT % (b"[1e" + b"9" * 500_000 + b"]"), {}, 422),
    "500,000 quotes": (b'"' * 500_000, {}, 422),
    "500,000 backslashes": (b'{"name": "' + b"\\" * 500_000 + b'"}', {}, 422),
    "a string that does not end": (b'{"name": "' + b"x" * 500_000, {}, 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_it_is_refused(world: World, name: str) -> None:
    body, headers, status = BODIES[name]
    for path in ("/v1/agents", "/v1/usage"):
        # An array is a batch of usage, where it may be: each item is looked at, and none of these is a record.
        expect = [status] if path == "/v1/agents" else [status, 422, 400]
        await world.strike(
            "bodies", "POST", path, by=world.mallory, data=io.BytesIO(body), headers={**JSON, **headers}, expect=expect
        )


HUGE = [
    "1e999999",
    "-1e999999",
    "1e-999999",
    "9" * 400,
    "0." + "0" * 400 + "1",
    "NaN",
    "Infinity",
    "-0",
    "0x10",
    "1" + "0" * 40,
]
NUMBERS = [
    ("POST", "/v1/packages", '{{"name": "x", "price": {}}}'),
    ("POST", "/v1/usage", '{{"cost": {}}}'),
    ("POST", "/v1/usage", '{{"tokensIn": {}}}'),
    ("POST", "/v1/usage", '[{{"cost": {}}}]'),
    ("POST", "/v1/api-keys", '{{"rateLimit": {}}}'),
    ("POST", "/v1/api-keys", '{{"usage": {{"cost": {}}}}}'),
]


@pytest.mark.parametrize(("method", "path", "body"), NUMBERS)
async def test_a_number_that_no_column_holds_is_refused(world: World, method: str, path: str, body: str) -> None:
    for number in HUGE:
        for text in (number, f'"{number}"'):
            sent = body.format(text).encode()
            expect = [201, 400, 409, 422] if number == "-0" else [400, 422]
            await world.strike("numbers", method, path, by=world.admin, data=sent, headers=JSON, expect=expect)


async def test_a_body_without_an_end_is_left(world: World) -> None:
    """In chunks, and never announced: it is read to the limit and no further."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            yield b" " * 65_536
            sent += 65_536

    # It may have answered, and closed.
    with suppress(ConnectionError, aiohttp.ClientError):
        await world.strike("bodies", "POST", "/v1/agents", by=world.mallory, data=endless(), headers=JSON, expect=[413])
    assert sent < 100 * LIMIT


async def test_a_bomb_is_not_unpacked(world: World) -> None:
    tracemalloc.start()
    try:
        headers = {**JSON, "Content-Encoding": "gzip"}
        await world.strike("bodies", "POST", "/v1/agents", by=world.mallory, data=BOMB, headers=headers, expect=[415])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


# Texts at which an expression with two ways to read one letter would take for ever.
PIECES = [
    ("a", "!"),
    ("a-", "!"),
    ("a:", ""),
    (":", ""),
    ("0", "x"),
    (" ", "x"),
    (",", "x"),
    ('"', ""),
    ('"a",', "x"),
    ('W/"', ""),
    (", \t", "x"),
    ("\\", ""),
    ("%41", "%"),
    (".", "x"),
    ("crf_", ""),
    ("aA1_-", "\n"),
    ("\u00e9", "\n"),
    ("$", ""),
]
EVIL = [piece * (3_000 // len(piece)) + end for piece, end in PIECES]

SEARCH = """
import importlib, json, pkgutil, re, sys
import crafely.api, crafely.auth
texts = json.load(sys.stdin)
found = 0
packages = [package for package in (crafely.api, crafely.auth)]
modules = [m for package in packages for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for module in modules:
    for name, value in vars(importlib.import_module(module.name)).items():
        if isinstance(value, re.Pattern):
            found += 1
            for text in texts:
                sent = text.encode() if isinstance(value.pattern, bytes) else text
                print(module.name, name, flush=True, file=sys.stderr)
                value.search(sent), value.fullmatch(sent), value.match(sent)
print(found)
"""


def search(texts: list[str]) -> subprocess.CompletedProcess[str]:
    """Every expression that meets clients' texts on each of these, in a process that can be stopped: it cannot."""
    command, given = [sys.executable, "-c", SEARCH], json.dumps(texts)
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=240)


async def test_no_expression_takes_for_ever(world: World) -> None:
    done = await asyncio.to_thread(search, EVIL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 15


PATTERNS = [place for place in places() if place.kind in {"query", "header", "body"}]


@pytest.mark.parametrize("text", EVIL[:4], ids=range(4))
async def test_nor_does_any_place_that_takes_a_text(world: World, text: str) -> None:
    """As long as a header may be. The server's own limit on a request would end what takes longer."""
    for place in PATTERNS[:: 1 if len(PATTERNS) < 50 else 4]:
        await send(world, place, text * 5)


async def send(world: World, place: Place, text: str) -> Any:
    path, options = request(place, text, packageId=world.package)
    expect = [200, 201, 400, 403, 404, 409, 412, 422]
    return await world.strike("long texts", place.method, path, by=world.admin, expect=expect, **options)
