"""The primary is lost and its standby promoted: the server goes on by itself, and what it has acknowledged is there.

Once among the other tests; ``make failover`` does it twenty times in a row and prints what happened. Who promotes is
the test, in the place of Patroni or repmgr; replication is synchronous.
"""

import asyncio
import os
import random
import re
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from rich import box
from rich.table import Table

from crafely.api.workers import REFUSALS
from crafely.cli.tables import show
from tests import standby
from tests.cli.conftest import crafely, new_folder, until
from tests.failover.makers import Makers
from tests.faults.clients import PASSING
from tests.standby import Node
from tests.torture.load import Load
from tests.torture.scene import WORKERS, Scene

README = Path(__file__).parents[2] / "README.md"
TIMES = int(os.environ.get("FAILOVER_TIMES", "1"))
CLIENTS, USERS = 16, 4
# Seconds from the promotion to the first answer of every kind, at most, whoever had to wait for it: for each of several
# hosts that refuses, or is a standby, a moment; a pool tries again after a second, and a coalescer, and the listener.
BOUND = 5
# A host that is silent costs more: statements that it had are given up after STATEMENT_TIMEOUT and two seconds, and who
# asks it for a connection waits for connect_timeout.
STATEMENT_TIMEOUT, CONNECT_TIMEOUT = 2, 2
SILENT_BOUND = BOUND + STATEMENT_TIMEOUT + 2 + CONNECT_TIMEOUT
# After that long somebody would have to help, which is a failure.
RECOVERY_SECONDS = 60
WAITS = "this worker waits for the database"
HOW = ("killed, a worker, too", "killed", "silent", "killed")


class Pair(Scene):
    """``crafely serve`` on a primary and its synchronous standby, of which it knows both."""

    def start(self) -> str:
        self.home.mkdir()
        self.primary, self.other = self._stack.enter_context(standby.servers(self.home))
        self.synchronise()
        nodes = (self.primary, self.other)
        return standby.url(nodes, target_session_attrs="primary", connect_timeout=str(CONNECT_TIMEOUT))

    def synchronise(self) -> None:
        """Nothing is acknowledged that the other one has not stored; promoted, that waits for nobody."""
        self.primary.synchronous(self.other)
        self.other.synchronous()

    def swap(self) -> Node:
        """The other one has been promoted. Gives the old primary."""
        self.primary, self.other = self.other, self.primary
        return self.other


class Failover(NamedTuple):
    """One of them."""

    how: str
    # Seconds without a primary, and those from the promotion until everything was served.
    away: float
    seconds: float
    # Acknowledged by then, and how often the answer was a 503.
    acknowledged: int
    refused: int


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """All tests of this module share it, in their order: the last one leaves it without a standby."""
    with new_folder() as folder, ExitStack() as stack:
        settings = {"CRAFELY_STATEMENT_TIMEOUT": str(STATEMENT_TIMEOUT)}
        pair = Pair(folder, stack, users=USERS, permissions=["*"], settings=settings)
        yield pair
        pair.stop(RECOVERY_SECONDS)
        assert "a request failed unexpectedly" not in pair.serving.err


async def fail_over(pair: Pair, how: str, load: Load, makers: Makers) -> Failover:
    refused, begin = load.outcomes["503"] + makers.outcomes["503"], time.monotonic()
    with ExitStack() as harm:
        if how == "silent":
            harm.enter_context(pair.primary.frozen())
        else:
            await asyncio.to_thread(pair.primary.kill)
        if "worker" in how:
            await asyncio.to_thread(kill_worker, pair)
        # Until somebody believes it.
        await asyncio.sleep(random.uniform(0.2, 2))  # noqa: S311 - no secret
        await asyncio.to_thread(pair.other.promote)
        promoted = time.monotonic()
        seconds = max(
            await load.recovered(promoted, RECOVERY_SECONDS),
            *[await recovered(makers, kind, promoted) for kind in makers.made],
        )
        assert pair.serving.process.poll() is None, pair.serving.err[-3000:]
        acknowledged = load.acknowledged + sum(map(len, makers.made.values()))
        old = pair.swap()
        if how == "silent":
            # Fenced: it must never go on where it was.
            await asyncio.to_thread(old.kill)
    await asyncio.to_thread(old.rejoin, pair.primary)
    await asyncio.to_thread(pair.synchronise)
    await asyncio.to_thread(until, lambda: len(pair.workers()) == WORKERS, "all workers")
    now = load.outcomes["503"] + makers.outcomes["503"]
    return Failover(how, promoted - begin, seconds, acknowledged, now - refused)


def kill_worker(pair: Pair) -> None:
    """The one that takes its place waits, longer than for a server that refuses it."""
    said = pair.serving.err.count(WAITS)
    os.kill(pair.workers()[0], signal.SIGKILL)
    until(
        lambda: pair.serving.err.count(WAITS) > said + REFUSALS or pair.serving.process.poll() is not None, "a worker"
    )


async def recovered(makers: Makers, kind: str, since: float) -> float:
    """Waits for the answer to a request sent later than a moment. Gives the seconds since then."""
    while makers.latest[kind] <= since:
        assert time.monotonic() < since + RECOVERY_SECONDS, makers.outcomes
        await asyncio.sleep(0.01)
    return time.monotonic() - since


async def test_a_failover_loses_nothing_that_was_acknowledged(pair: Pair) -> None:
    failovers = []
    async with (
        Load(pair.serving.address, pair.keys, CLIENTS) as load,
        Makers(pair.serving.address, pair.keys[0]) as makers,
    ):
        for number in range(TIMES):
            await load.more(300, RECOVERY_SECONDS)
            await asyncio.sleep(random.uniform(0, 0.5))  # noqa: S311 - no secret
            failovers.append(await fail_over(pair, HOW[number % len(HOW)], load, makers))
        await load.more(300, RECOVERY_SECONDS)
    with pair.primary.looking() as connection:
        stored = load.check(connection), makers.check(connection)
    report(failovers, load, makers, stored)

    for one in failovers:
        assert one.seconds <= (SILENT_BOUND if one.how == "silent" else BOUND), one
    assert makers.replayed > 0
    assert {outcome for outcome in load.outcomes if outcome.isdigit()} <= {"201", "503"}, load.outcomes
    # Keys that were handed out open the door.
    for name in list(makers.tokens)[:: max(1, len(makers.tokens) // 20)]:
        assert pair.serving.get("/v1/me", makers.tokens[name])[0] == 200, name
    for words in (["usage", "reconcile", "--json"], ["audit", "verify"], ["migrate", "status"]):
        done = crafely(pair.serving.folder, *words, **pair.variables)
        assert done.returncode == 0, done


def test_the_bound_is_the_one_that_the_readme_states() -> None:
    stated = re.findall(r"within (\d+) s of the\spromotion", README.read_text())
    assert set(stated) <= {str(BOUND)}


def report(failovers: list[Failover], load: Load, makers: Makers, stored: tuple[int, int]) -> None:
    """What happened, for who runs it with -s."""
    table = Table("primary", "none for", "served again after", "acknowledged", "503", box=box.SIMPLE_HEAD)
    for one in failovers:
        row = f"{one.away:.2f} s", f"{one.seconds:.2f} s", str(one.acknowledged), str(one.refused)
        table.add_row(one.how, *row)
    show(table)
    table = Table("primary", "times", "median", "most", box=box.SIMPLE_HEAD)
    for kind in ("killed", "silent"):
        if seconds := [one.seconds for one in failovers if one.how.startswith(kind)]:
            table.add_row(kind, str(len(seconds)), f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s")
    show(table)
    table = Table("", "acknowledged", "stored", "lost", "replayed", "answers", box=box.SIMPLE_HEAD)
    table.add_row("usage records", str(load.acknowledged), str(stored[0]), "0", "", str(dict(load.outcomes)))
    table.add_row("agents, keys", str(stored[1]), "", "0", str(makers.replayed), str(dict(makers.outcomes)))
    show(table)


def test_nothing_is_acknowledged_that_the_standby_has_not_stored(pair: Pair) -> None:
    """The commit itself waits for it, with no time limit of the server's: who waits is told in time."""
    body = {"name": "alone", "instructions": "Stay."}
    record = {"model": "gpt-4o", "tokensIn": 1}
    with pair.other.frozen():
        for path, sent in (("/v1/agents", body), ("/v1/usage", record), ("/v1/usage", [record, record])):
            status, problem = pair.serving.request("POST", path, pair.keys[2], sent)
            # Or it waited for a row that one of those before holds for as long.
            assert (status, problem["code"] in PASSING) == (503, True), problem
        assert pair.serving.get("/v1/agents", pair.keys[2])[0] == 200
    made = until_made(pair, body)
    with pair.primary.looking() as connection:
        found = connection.execute("select id from agents where name = 'alone'").fetchall()
    # Who was told to come back may find what he had begun, too; both are whole.
    assert (made,) in found


def until_made(pair: Pair, body: dict[str, str]) -> str:
    def made() -> str | None:
        status, answer = pair.serving.request("POST", "/v1/agents", pair.keys[2], body)
        return str(answer["id"]) if status == 201 else None

    return str(until(made, "an agent to be made"))


async def test_a_key_that_is_revoked_around_the_failover_is_not_believed(pair: Pair) -> None:
    """Warm in the memory of every worker; the new primary revokes it before the workers have found that."""
    token = pair.keys[1]
    async with aiohttp.ClientSession(
        pair.serving.address,
        headers={"Authorization": f"Bearer {token}"},
        timeout=aiohttp.ClientTimeout(total=15),
        # Connections of many requests each would all be one worker's.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    ) as http:

        async def ask() -> int:
            async with http.get("/v1/me") as response:
                return response.status

        assert {await ask() for _ in range(40)} == {200}
        await asyncio.to_thread(pair.primary.kill)
        # Nobody tells the workers of changes: what they remember is not believed from this moment on.
        assert {await ask() for _ in range(20)} == {503}
        await asyncio.to_thread(pair.other.promote)
        revoke = "update api_keys set active = false where user_id = 'user_1' returning id"
        assert await asyncio.to_thread(pair.other.ask, revoke) is not None
        answers = [await ask() for _ in range(40)]
        assert set(answers) <= {401, 503}
        async with asyncio.timeout(RECOVERY_SECONDS):
            while {await ask() for _ in range(8)} != {401}:  # noqa: ASYNC110 - another process says when
                await asyncio.sleep(0.1)
