"""PostgreSQL, or a worker, fails in every way: clients are told in time, and served again without a restart of ours."""

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.cli.conftest import new_folder, until
from tests.faults import faults
from tests.faults.clients import DATABASE, READS, RECOVERY_SECONDS, SETTINGS, WRITES, Clients, clients
from tests.torture.scene import WORKERS, Scene


async def until_told(them: Clients, what: str) -> None:
    """Waits until /readyz says it, while /healthz goes on saying that the process is well."""
    async with asyncio.timeout(30):
        while True:
            answers = await them.round("healthz", "readyz")
            assert answers["healthz"].status == 200
            if answers["readyz"].status == 503:
                assert what in answers["readyz"]["detail"]
                return
            await asyncio.sleep(0.02)


async def during(them: Clients, fault: Callable[[], None]) -> None:
    """A fault while everybody asks on and on."""
    work = asyncio.create_task(asyncio.to_thread(fault))
    while not work.done():
        await them.round()
    await work


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_restarted(scene: Scene, mode: str) -> None:
    async with clients(scene) as them:
        await during(them, lambda: scene.restart(mode))


async def test_killed(scene: Scene) -> None:
    workers = scene.workers()
    async with clients(scene) as them:
        with faults.killed(scene):
            await until_told(them, "cannot be reached")
            statuses = await them.statuses()
            assert {statuses[kind] for kind in DATABASE} == {503}
            assert statuses["healthz"] == 200
    assert scene.workers() == workers


async def test_frozen(scene: Scene) -> None:
    """The limit is that of a statement and two seconds, or that of waiting for a connection."""
    workers = scene.workers()
    async with clients(scene) as them:
        with faults.frozen(scene):
            for _ in range(2):
                statuses = await them.statuses()
                assert {statuses[kind] for kind in DATABASE} == {503}
                assert (statuses["healthz"], statuses["readyz"]) == (200, 503)
    assert scene.workers() == workers


async def test_frozen_for_a_moment(scene: Scene) -> None:
    """Who waits for it is served."""
    async with clients(scene) as them:
        with faults.frozen(scene):
            asking = asyncio.create_task(them.statuses("agents", "new agent", "usage"))
            await asyncio.sleep(0.3)
        await asking


async def test_out_of_connections(scene: Scene) -> None:
    async with clients(scene) as them:
        with faults.used_up(scene):
            await until_told(them, "cannot be reached")
            statuses = await them.statuses()
            assert {statuses[kind] for kind in DATABASE} == {503}
            # A worker that has to start meanwhile waits for one.
            victim = faults.kill_worker(scene)
            await asyncio.to_thread(faults.replaced, scene, victim, WORKERS)
            assert (await them.statuses("healthz")) == {"healthz": 200}
            await asyncio.sleep(2)
            assert scene.serving.process.poll() is None


async def test_read_only(scene: Scene) -> None:
    async with clients(scene) as them:
        with faults.read_only(scene):
            # A connection hears of it before its next statement, or one after.
            await until_all(them, 503, *WRITES)
            answers = await them.round()
            assert {answers[kind].status for kind in READS} == {200}
            assert {answers[kind]["code"] for kind in WRITES} == {"unavailable"}
            assert (answers["verify"].status, answers["readyz"].status) == (200, 200)


async def until_all(them: Clients, status: int, *kinds: str) -> None:
    async with asyncio.timeout(30):
        while set((await them.statuses(*kinds)).values()) != {status}:  # noqa: ASYNC110 - another process says when
            await asyncio.sleep(0.02)


async def test_locked(scene: Scene) -> None:
    """Who needs the table is told to come back; all others do not notice."""
    async with clients(scene) as them:
        with faults.locked(scene, "agents"):
            answers = await them.round()
            assert {kind for kind, answer in answers.items() if answer.status == 503} == {"agents", "new agent"}
            assert answers["agents"]["code"] == "retry"


async def test_slow(scene: Scene) -> None:
    async with clients(scene) as them:
        with faults.slow(scene, "agents", 30):
            answers = await them.round()
            assert {kind for kind, answer in answers.items() if answer.status == 503} == {"new agent"}
            assert answers["new agent"]["code"] == "timeout"


SLEEPING = "select from pg_stat_activity where wait_event = 'PgSleep' and application_name like 'crafely%'"


@pytest.mark.parametrize(("kind", "table"), [("new agent", "agents"), ("usage", "usage"), ("usage batch", "usage")])
async def test_cut_amid_a_statement(scene: Scene, kind: str, table: str) -> None:
    async with clients(scene) as them:
        with faults.slow(scene, table, 0.9), faults.looking(scene) as looking:
            asking = asyncio.create_task(them.ask(kind))
            await asyncio.to_thread(until, lambda: looking.execute(SLEEPING).rowcount, "the statement to run")
            faults.terminate_all(scene)
            assert (await asking)["code"] == "unavailable"


async def test_a_worker_killed(scene: Scene) -> None:
    async with clients(scene) as them:
        victim = faults.kill_worker(scene)
        # The system may still hand it connections in this very moment; each of the next ones is answered.
        await asyncio.to_thread(until, lambda: victim not in scene.workers(), "its end")
        await them.round()
        await asyncio.to_thread(faults.replaced, scene, victim, WORKERS)


async def test_a_worker_that_does_nothing(scene: Scene) -> None:
    """The other one serves, and after the time of a request (12 s at least) another takes its place."""
    async with clients(scene) as them:
        victim = scene.workers()[0]
        with faults.stopped(victim):
            assert set((await them.statuses()).values()) == {200, 201}
            await asyncio.to_thread(faults.replaced, scene, victim, WORKERS)


@pytest.fixture
def small_disk() -> Iterator[Scene]:
    """On a file system of its own, which is soon full."""
    with new_folder() as folder, ExitStack() as stack:
        home = folder / "database"
        home.mkdir()
        if os.geteuid() != 0 or subprocess.run([*MOUNT, home], check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        stack.callback(lambda: subprocess.run(["/bin/umount", "--lazy", home], check=True))
        scene = Scene(folder, stack, users=2, permissions=["*"], settings=SETTINGS, workers=1)
        yield scene
        scene.stop(RECOVERY_SECONDS)


MOUNT: list[str | Path] = ["/bin/mount", "-t", "tmpfs", "-o", "size=256m,mode=0755", "tmpfs"]


def fill(ballast: Path) -> None:
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


async def test_out_of_disk(small_disk: Scene) -> None:
    async with clients(small_disk) as them:
        ballast = small_disk.home / "ballast"
        await asyncio.to_thread(fill, ballast)
        # What is in the tables' last pages still has room; then nothing.
        assert await them.until_refused() == "unavailable"
        assert (await them.statuses("healthz", "agents", "verify")) == {"healthz": 200, "agents": 200, "verify": 200}
        ballast.unlink()
