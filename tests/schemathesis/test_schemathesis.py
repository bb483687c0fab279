"""schemathesis against the real server: whatever fits its description, or breaks it, is answered as described.

Every value at the edges of its type, the same each time, and some chains of calls are among the tests; ``make
schemathesis`` makes at least SCHEMATHESIS_REQUESTS requests of all kinds.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich import box
from rich.table import Table

from crafely.api import ROUTES
from crafely.cli.tables import show
from tests.api.conftest import Client, Server, serving
from tests.auth.conftest import Signer

REQUESTS = int(os.environ.get("SCHEMATHESIS_REQUESTS", "0"))
# With the other tests: what is the same each time, but for the links that are followed.
SMALL = ["--phases", "coverage,stateful", "--max-examples", "4", "--seed", "5", "--generation-deterministic"]
# Operations that have few different requests make fewer than they may.
LARGE = ["--max-examples", str(REQUESTS // 42), "--no-shrink"]
LEAST = REQUESTS or 1000
# Much longer than it takes: for a machine on which others work.
SECONDS = 3600 if REQUESTS else 300
ROOT = Path(__file__).parents[2]
PROGRAM = str(Path(sys.executable).with_name("schemathesis"))

CONFIG = """
continue-on-failure = true

[auth.wfc]
path = {keys}
user = "administrator"
# A third check of tenancy: neither may see what the other has made.
peers = ["administrator", "stranger"]

[cache]
enabled = false

[generation]
database = "none"

# With 412: a version that a client names fits its description, and is seldom the one that is stored.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx"]

# With 412 and 413: a text that is too long may make a body that is.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "406", "409", "412", "413", "415", "422", "428", "429"]
"""


@pytest.fixture
async def target(database_url: str) -> AsyncIterator[Server]:
    async with serving(database_url, Signer("ins_a")) as server:
        yield server


async def test_every_answer_is_one_that_is_described(
    target: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callers = {
        "administrator": await target.caller("administrator", "*", "admin"),
        "stranger": await target.caller("stranger", "*"),
    }
    own = await unlimited(callers)
    begin = time.monotonic()
    said = await schemathesis(target, callers, own, tmp_path, *(LARGE if REQUESTS else SMALL))
    counts = {(name, status): count for name, status, count in json.loads((tmp_path / "counts.json").read_text())}
    report(said, counts, time.monotonic() - begin)

    assert sum(counts.values()) >= LEAST
    assert {name for name, _ in counts} >= {f"{route.method} {route.path}" for route in ROUTES} - {"GET /openapi.json"}
    if REQUESTS:
        # What never succeeded would not have been tried. The same few values each time do not find every id.
        reached = {name for name, status in counts if status < 300}
        assert {f"{route.method} {route.path}" for route in ROUTES} - reached <= {"GET /openapi.json"}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def unlimited(callers: dict[str, Client]) -> list[str]:
    """Gives both the largest rate limit: a package that is made on the way may have the smallest. Gives the ids of what
    they come with.
    """
    body = {"name": "without a limit", "price": "0", "rateLimit": 1_000_000}
    package = (await callers["administrator"].post("/v1/packages", body))["id"]
    ids = [package]
    for caller in callers.values():
        ids.append((await caller.post("/v1/user-subscriptions", {"packageId": package}))["id"])
        ids.append((await caller.get("/v1/me"))["apiKeyId"])
    return ids


async def schemathesis(server: Server, callers: dict[str, Client], own: list[str], folder: Path, *options: str) -> str:
    """Runs it on a server and gives what it said. Fails with that where it found something."""
    keys = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {caller.token}"}]}
        for name, caller in callers.items()
    ]
    (folder / "keys.json").write_text(json.dumps({"auth": keys}))
    (folder / "config.toml").write_text(CONFIG.format(keys=json.dumps(str(folder / "keys.json"))))
    host, port = server.address
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "--config-file",
        str(folder / "config.toml"),
        "run",
        f"http://{host}:{port}/openapi.json",
        "--no-color",
        *options,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.schemathesis.hooks",
            "SCHEMATHESIS_COUNTS": str(folder / "counts.json"),
            "SCHEMATHESIS_OWN": ",".join(own),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            said = (await process.communicate())[0].decode()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    # A request may be a megabyte in one line.
    assert process.returncode == 0, "\n".join(line[:1000] for line in said.splitlines())
    return said


def report(said: str, counts: dict[tuple[str, int], int], seconds: float) -> None:
    """What happened, for who runs it with -s."""
    by_status: Counter[int] = Counter()
    by_operation: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for (name, status), count in counts.items():
        by_status[status] += count
        by_operation[name][status] += count
    table = Table("operation", "requests", "answers", box=box.SIMPLE_HEAD)
    for name, answers in by_operation.items():
        table.add_row(name, f"{answers.total():,}", shown(answers))
    table.add_section()
    table.add_row(f"in {seconds:.0f} s", f"{by_status.total():,}", shown(by_status))
    show(table)
    print(said[said.index("Schemathesis v") :])  # noqa: T201 - a report is printed


def shown(answers: Counter[int]) -> str:
    return ", ".join(f"{status}: {count:,}" for status, count in sorted(answers.items()))
