"""With Debian's Patroni, where it is installed: the leader is killed, Patroni promotes, and our server finds that."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from crafely.db.session import connect
from tests.cli.conftest import new_folder, until
from tests.failover import patroni
from tests.failover.makers import Makers
from tests.failover.test_failover import BOUND, RECOVERY_SECONDS, recovered
from tests.torture.load import Load
from tests.torture.scene import Scene

pytestmark = pytest.mark.skipif(bool(patroni.missing()), reason=f"there is no {patroni.missing()}")


class Led(Scene):
    """``crafely serve`` on what Patroni runs."""

    def start(self) -> str:
        self.home.mkdir()
        self.home.chmod(0o755)
        self.home.parent.chmod(0o755)
        self.leader, self.other = self._stack.enter_context(patroni.members(self.home))
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in (self.leader, self.other))
        until(lambda: self.leader.leads, "the leader")
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=primary"


@pytest.fixture
def led() -> Iterator[Led]:
    with new_folder() as folder, ExitStack() as stack:
        led = Led(folder, stack, users=2, permissions=["*"], workers=1)
        yield led
        led.stop(RECOVERY_SECONDS)


async def test_the_leader_is_killed(led: Led) -> None:
    address = led.serving.address
    async with Load(address, led.keys, 8) as load, Makers(address, led.keys[0], 2) as makers:
        await load.more(200, RECOVERY_SECONDS)
        await asyncio.to_thread(led.leader.kill)
        await asyncio.to_thread(until, lambda: led.other.leads, "another leader")
        promoted = time.monotonic()
        seconds = [await load.recovered(promoted, RECOVERY_SECONDS)]
        seconds += [await recovered(makers, kind, promoted) for kind in makers.made]
        await load.more(200, RECOVERY_SECONDS)
    assert max(seconds) <= BOUND
    with connect(led.url) as connection:
        load.check(connection)
        makers.check(connection)
