"""Servers that are measured: processes of their own, stopped when the bench is through with them."""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from crafely.bench import BenchError
from crafely.config import PREFIX, Settings
from crafely.keyring import OFF

START_SECONDS = 60
STOP_SECONDS = 30
# What a server was started for by whoever runs the bench; the bench says itself where and with how many workers.
_OWN = {f"{PREFIX}{name}" for name in ("DATABASE_URL", "HOST", "PORT", "WORKERS", "ENCRYPTION_KEYS")}
# Nor does a standby, a pooler or a retention of another database belong to the bench's.
_OWN |= {f"{PREFIX}{name}" for name in ("REPLICA_URL", "POOLER_URL", "ENGINE", "USAGE_MONTHS", "USAGE_EXPORT_DIR")}


class Address(msgspec.Struct, frozen=True):
    """Where a server answers, and its process where it is ours."""

    host: str
    port: int
    pid: int | None = None


@asynccontextmanager
async def crafely(url: str, *, workers: int = 1, **settings: str) -> AsyncIterator[Address]:
    """``crafely serve`` on a database. Keywords are settings that it knows, in lower case.

    One user asks for all, so that his limit would end it: it is off unless a keyword says otherwise.
    """
    environ = {name: value for name, value in os.environ.items() if name not in _OWN}
    environ |= {"CRAFELY_DATABASE_URL": url, "CRAFELY_PORT": "0", "CRAFELY_WORKERS": str(workers)}
    # What is measured stores no text.
    environ["CRAFELY_ENCRYPTION_KEYS"] = OFF
    environ |= {"CRAFELY_RATE_LIMIT_USER": "off"}
    for name, value in settings.items():
        if name not in Settings.__struct_fields__:
            raise BenchError(f"this release has no setting {PREFIX}{name.upper()}")
        environ[f"{PREFIX}{name.upper()}"] = value
    command = [sys.executable, "-m", "crafely", "serve"]
    async with _started(command, environ, r"API +http://127\.0\.0\.1:(\d+)") as address:
        yield address


@asynccontextmanager
async def bare(kind: str, setup: bytes) -> AsyncIterator[Address]:
    """A handler of ``bare.py``, and what it is told; not as an argument, which every user of the machine could read."""
    command = [sys.executable, "-m", "crafely.bench.bare", kind]
    async with _started(command, dict(os.environ), r"port (\d+)\n", setup) as address:
        yield address


@asynccontextmanager
async def _started(
    command: Sequence[str], environ: dict[str, str], ready: str, told: bytes = b""
) -> AsyncIterator[Address]:
    """Starts a program, waits until it has said on which port it answers, and stops it afterwards.

    What it logs goes to a file, as a server's log does.
    """
    with tempfile.TemporaryDirectory(prefix="crafely-bench-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=out_file,
                stderr=err_file,
                # Ctrl-C in a terminal reaches the bench, which then stops its servers in order.
                start_new_session=True,
            )
        try:
            if process.stdin is not None:
                process.stdin.write(told)
                process.stdin.close()
            yield await _port(process, out, err, ready)
        finally:
            await _stop(process)


async def _port(process: asyncio.subprocess.Process, out: Path, err: Path, ready: str) -> Address:
    end = time.monotonic() + START_SECONDS
    while not (found := re.search(ready, _said(out))):
        if process.returncode is not None or time.monotonic() > end:
            last = (_said(err).strip().splitlines() or ["nothing"])[-1]
            raise BenchError(f"a server that is to be measured did not start; it said: {last}")
        await asyncio.sleep(0.02)
    return Address("127.0.0.1", int(found[1]), process.pid)


def _said(file: Path) -> str:
    return file.read_text(errors="replace")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
