import asyncio
import logging
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crafely.auth import Caller, rate_limits
from crafely.auth.rate_limits import Exceeded, RateLimits
from crafely.config import Settings, SettingsError, load
from tests.auth.table import Row

# Any machine may have one of them; which one makes no difference.
PROGRAM = shutil.which("valkey-server") or shutil.which("redis-server")
needs_storage = pytest.mark.skipif(PROGRAM is None, reason="neither valkey-server nor redis-server is on the PATH")

NOON = 1_800_000_000  # the first second of a minute


class Clock:
    """The time that limits see: it stands until a test moves it."""

    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rate_limits, "time", made)
    return made


class Packages:
    """What the packages of users allow, and how often that was asked."""

    def __init__(self, **limits: int) -> None:
        self.limits: dict[str, int] = limits
        self.asked: list[str] = []
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, user_id: str) -> int | None:
        self.asked.append(user_id)
        await self.answers.wait()
        if self.away:
            raise OSError("away")
        return self.limits.get(user_id)


def limits(packages: Packages | None = None, **settings: Any) -> RateLimits:
    return RateLimits(Settings(**settings), package_limit=packages or Packages())


def key(name: str = "key_1", user: str = "ann", rate_limit: int | None = None) -> Caller:
    return Caller(user_id=user, permissions=frozenset(), api_key_id=name, rate_limit=rate_limit)


def session(user: str = "ann") -> Caller:
    return Caller(user_id=user, permissions=frozenset(), session_id="sess_1")


async def refused(made: RateLimits, caller: Caller) -> tuple[str, int, int]:
    with pytest.raises(Exceeded) as caught:
        await made.admit(caller)
    return caught.value.name, caught.value.quota, caught.value.seconds


def away(made: RateLimits) -> bool:
    """Asked anew each time, which mypy does not think of a property."""
    return made.away


async def policy(made: RateLimits, caller: Caller) -> dict[str, int]:
    """The limits that hold for a caller, by name."""
    lines = (await made.admit(caller)).decode()
    return {name: int(quota) for name, quota in re.findall(r'"(\w+)";q=(\d+);w=60', lines)}


async def test_the_lines_say_how_key_and_user_stand(clock: Clock) -> None:
    made = limits(rate_limit=3, rate_limit_user=5)
    clock.now += 29.9
    assert await made.admit(key()) == (
        b'RateLimit-Policy: "key";q=3;w=60, "user";q=5;w=60\r\nRateLimit: "key";r=2;t=31, "user";r=4;t=31\r\n'
    )
    assert await made.admit(session()) == b'RateLimit-Policy: "user";q=5;w=60\r\nRateLimit: "user";r=3;t=31\r\n'
    alone = limits(rate_limit=3, rate_limit_user="off")
    assert await alone.admit(key()) == b'RateLimit-Policy: "key";q=3;w=60\r\nRateLimit: "key";r=2;t=31\r\n'
    assert await limits(rate_limit="off", rate_limit_user="off").admit(key()) == b""


async def test_a_key_is_refused_after_its_limit_until_the_minute_ends(clock: Clock) -> None:
    made = limits(rate_limit=3)
    clock.now += 20
    for _ in range(3):
        await made.admit(key())
    assert await refused(made, key()) == ("key", 3, 40)
    # Another key of the user has its own.
    await made.admit(key("key_2"))
    clock.now = NOON + 59.999
    assert await refused(made, key()) == ("key", 3, 1)
    clock.now = NOON + 60
    await made.admit(key())
    assert made.refusals == {"key": 2}


async def test_all_keys_and_sessions_of_a_user_have_one_limit_together(clock: Clock) -> None:
    made = limits(rate_limit_user=3)
    for caller in (key("key_1"), key("key_2"), session()):
        await made.admit(caller)
    for caller in (key("key_1"), key("key_3"), session()):
        assert await refused(made, caller) == ("user", 3, 60)
    await made.admit(session("bob"))
    await made.admit(key("key_4", "bob"))


async def test_what_a_key_is_refused_is_not_counted_for_its_user(clock: Clock) -> None:
    made = limits(rate_limit_user=5)
    await made.admit(key(rate_limit=1))
    for _ in range(20):
        assert (await refused(made, key(rate_limit=1)))[0] == "key"
    for _ in range(4):
        await made.admit(key("key_2"))
    assert (await refused(made, key("key_2")))[0] == "user"


@pytest.mark.parametrize(
    ("settings", "own", "wanted"),
    [
        # The key's own, else the default, else the package's; and for the user the package's, else the setting's.
        ({}, 7, {"key": 7, "user": 20}),
        ({}, None, {"key": 20, "user": 20}),
        ({"rate_limit": 9}, 7, {"key": 7, "user": 20}),
        ({"rate_limit": 9}, None, {"key": 9, "user": 20}),
        ({"rate_limit": "off"}, None, {"user": 20}),
        ({"rate_limit": "off"}, 7, {"key": 7, "user": 20}),
        ({"rate_limit_user": "off"}, None, {"key": 20}),
        ({"rate_limit_user": "off", "rate_limit": "off"}, None, {}),
        ({"rate_limit_user": "off", "rate_limit": "off"}, 7, {"key": 7}),
    ],
)
async def test_whose_limit_holds(settings: dict[str, Any], own: int | None, wanted: dict[str, int]) -> None:
    made = limits(Packages(ann=20), **settings)
    assert await policy(made, key(rate_limit=own)) == wanted
    assert await policy(made, session()) == {name: limit for name, limit in wanted.items() if name == "user"}
    presented = await made.present(Row(id="key_9", key_id="9", hashed_key="", user_id="ann", rate_limit=own))
    assert (presented.quota if presented is not None else None) == wanted.get("key")


async def test_where_no_package_says_anything_the_setting_holds() -> None:
    assert await policy(limits(), key()) == {"user": 60_000}
    assert await policy(limits(rate_limit=9), key(rate_limit=None)) == {"key": 9, "user": 60_000}


async def test_packages_are_asked_once_a_minute_for_all_who_wait(clock: Clock) -> None:
    packages = Packages(ann=20)
    packages.answers.clear()
    made = limits(packages)
    waiting = [asyncio.create_task(policy(made, key(f"key_{n}"))) for n in range(5)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert packages.asked == ["ann"]
    packages.answers.set()
    assert await asyncio.gather(*waiting) == [{"key": 20, "user": 20}] * 5
    assert await policy(made, session()) == {"user": 20}
    assert (packages.asked, made._asking) == (["ann"], {})

    # The next minute's first request does not wait; those after it know.
    packages.limits["ann"] = 30
    clock.now += 60
    packages.answers.clear()
    assert await policy(made, key()) == {"key": 20, "user": 20}
    packages.answers.set()
    await asyncio.gather(*made._asking.values())
    assert await policy(made, key()) == {"key": 30, "user": 30}
    assert packages.asked == ["ann", "ann"]


async def test_nobody_asks_for_packages_where_they_say_nothing() -> None:
    packages = Packages(ann=20)
    await limits(packages, rate_limit="off", rate_limit_user="off").admit(key())
    await limits(packages, rate_limit=9, rate_limit_user="off").admit(key())
    await limits(packages, rate_limit_user="off").admit(key(rate_limit=5))
    await limits(packages, rate_limit_user="off").admit(session())
    await limits(packages, rate_limit=9).present(Row(id="key_9", key_id="9", hashed_key=""))
    assert packages.asked == []


@pytest.mark.parametrize("silent", [True, False])
async def test_a_database_that_is_away_refuses_nobody(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(rate_limits, "ANSWER_SECONDS", 0.01)
    packages = Packages(ann=20)
    made = limits(packages)
    await made.admit(key())
    packages.away = not silent
    if silent:
        packages.answers.clear()
    clock.now += 60
    # What was known last; and for who was never seen, the setting.
    assert await policy(made, key()) == {"key": 20, "user": 20}
    assert await policy(made, key("key_2", "bob")) == {"user": 60_000}
    await asyncio.wait_for(asyncio.gather(*made._asking.values()), 10)
    assert await policy(made, key()) == {"key": 20, "user": 20}
    assert len([record for record in caplog.records if "what packages allow" in record.message]) == 1
    await made.close()


async def test_a_presented_key_is_counted_like_a_caller(clock: Clock) -> None:
    made = limits(rate_limit=3)
    row = Row(id="key_1", key_id="1", hashed_key="")
    clock.now += 10
    assert [await made.present(row) for _ in range(2)] == [(3, 2, 50), (3, 1, 50)]
    await made.admit(key("key_1"))
    assert (await made.present(row) or (0, 0))[1] < 0
    assert (await refused(made, key("key_1")))[0] == "key"
    assert made.refusals == {"presented": 1, "key": 1}
    assert await limits().present(row) is None


async def test_an_address_is_refused_after_so_many_failures(clock: Clock) -> None:
    made = limits(rate_limit_failures=3)
    clock.now += 15
    for _ in range(3):
        await made.attempt("192.0.2.1")
        await made.failed("192.0.2.1")
    with pytest.raises(Exceeded) as caught:
        await made.attempt("192.0.2.1")
    assert (caught.value.name, caught.value.quota, caught.value.seconds) == ("address", 3, 45)
    await made.attempt("192.0.2.2")
    clock.now += 45
    await made.attempt("192.0.2.1")
    assert made.refusals == {"address": 1}


async def test_attempts_that_did_not_fail_are_as_many_as_one_likes() -> None:
    made = limits(rate_limit_failures=1)
    for _ in range(100):
        await made.attempt("192.0.2.1")
    off = limits(rate_limit_failures="off")
    for _ in range(100):
        await off.failed("192.0.2.1")
        await off.attempt("192.0.2.1")


async def test_a_clock_that_is_put_back_begins_anew(clock: Clock) -> None:
    made = limits(rate_limit=1)
    await made.admit(key())
    clock.now -= 3600
    await made.admit(key())
    assert await refused(made, key()) == ("key", 1, 60)


async def test_names_are_bounded_and_the_first_ones_go(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_NAMES", 10)
    monkeypatch.setattr(rate_limits, "MAX_PACKAGES", 10)
    made = limits(rate_limit_failures=1, rate_limit=1)
    for n in range(1000):
        await made.failed(f"192.0.2.{n}")
        await made.admit(key(f"key_{n}", f"user_{n}"))
    counted = [counts._counts for counts in made._of.values()]
    assert [len(names) for names in counted] == [10, 10, 10]
    assert len(made._packages) == 10
    # Whoever invents addresses pushes no caller out, and no late address.
    await refused(made, key("key_999", "user_999"))
    with pytest.raises(Exceeded):
        await made.attempt("192.0.2.999")
    await made.attempt("192.0.2.0")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", "1000000001"])
@pytest.mark.parametrize("name", ["RATE_LIMIT", "RATE_LIMIT_USER", "RATE_LIMIT_FAILURES"])
def test_a_limit_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({f"CRAFELY_{name}": value})
    rule = "expected requests a minute, a whole number from 1 to 1000000000, or off"
    assert str(caught.value) == f"CRAFELY_{name}: {rule}"


def test_a_limit_is_a_number_or_off() -> None:
    settings = load({"CRAFELY_RATE_LIMIT": "600", "CRAFELY_RATE_LIMIT_USER": "off"})
    assert (settings.rate_limit, settings.rate_limit_user, settings.rate_limit_failures) == (600, "off", 60)


@pytest.mark.parametrize(
    "url", ["memcached://10.0.0.1", "10.0.0.1:6379", "redis://secret@host:port", "redis://h/x?db=y"]
)
def test_a_storage_that_is_none_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(SettingsError, match="CRAFELY_RATE_LIMIT_STORAGE: ") as caught:
        limits(rate_limit_storage=url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


class Storage:
    """A server of Redis's protocol on a Unix socket in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{folder}/socket"

    def start(self) -> None:
        assert PROGRAM is not None
        options = ["--port", "0", "--unixsocket", f"{self._folder}/socket", "--save", "", "--dir", str(self._folder)]
        with (self._folder / "log").open("ab") as out:
            self._process = subprocess.Popen([PROGRAM, *options], stdout=out, stderr=out)
        for _ in range(2000):
            if self.answers():
                return
            self._process.poll()
            assert self._process.returncode is None, (self._folder / "log").read_text()
            time.sleep(0.01)
        raise AssertionError("it does not answer")

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(10)
            try:
                probe.connect(f"{self._folder}/socket")
                probe.sendall(b"PING\r\n")
                return probe.recv(100) == b"+PONG\r\n"
            except OSError:
                return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    # On a machine that does much else nothing may be taken for away that is not.
    monkeypatch.setattr(rate_limits, "ANSWER_SECONDS", 30)
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="crafely-") as folder:
        made = Storage(Path(folder))
        made.start()
        yield made
        made.stop()


@needs_storage
async def test_two_workers_with_a_storage_count_together(clock: Clock, storage: Storage) -> None:
    one, other = (limits(rate_limit=4, rate_limit_failures=2, rate_limit_storage=storage.url) for _ in range(2))
    for worker in (one, other, one, other):
        await worker.admit(key())
    assert await refused(one, key()) == await refused(other, key()) == ("key", 4, 60)
    presented = await other.present(Row(id="key_2", key_id="2", hashed_key=""))
    assert presented is not None
    assert presented.left == 3
    assert b'"key";r=2;' in await one.admit(key("key_2"))

    await one.failed("192.0.2.1")
    await other.failed("192.0.2.1")
    for worker in (one, other):
        with pytest.raises(Exceeded):
            await worker.attempt("192.0.2.1")
    clock.now += 60
    await one.admit(key())
    await one.attempt("192.0.2.1")
    # Its own memory has counted nothing.
    assert [counts._counts for counts in one._of.values()] == [{}, {}, {}]
    await one.close()
    await other.close()


@needs_storage
async def test_more_requests_than_connections_wait_for_one(clock: Clock, storage: Storage) -> None:
    made = limits(rate_limit=1000, rate_limit_storage=storage.url)
    await asyncio.gather(*(made.admit(key()) for _ in range(300)))
    assert not made.away
    assert b'"key";r=699;' in await made.admit(key())
    await made.close()


@needs_storage
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_while_a_storage_is_away_a_worker_counts_alone(
    clock: Clock, storage: Storage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(rate_limits, "RETRY_SECONDS", 3600)
    made = limits(rate_limit=3, rate_limit_failures=1, rate_limit_storage=storage.url)
    await made.admit(key())
    assert away(made) is False

    monkeypatch.setattr(rate_limits, "ANSWER_SECONDS", 0.05)
    if how == "killed":
        storage.stop()
    else:
        storage.signal(signal.SIGSTOP)
    async with asyncio.timeout(10):
        for _ in range(3):
            await made.admit(key())
        assert (await refused(made, key()))[0] == "key"
        await made.failed("192.0.2.1")
        with pytest.raises(Exceeded):
            await made.attempt("192.0.2.1")
    assert away(made)

    monkeypatch.setattr(rate_limits, "ANSWER_SECONDS", 30)
    if how == "killed":
        storage.start()
    else:
        storage.signal(signal.SIGCONT)
    # It is left alone until its time has come.
    assert (await refused(made, key()))[0] == "key"
    assert away(made)
    monkeypatch.setattr(rate_limits, "RETRY_SECONDS", 0)
    assert made._shared is not None
    made._shared._again = 0
    clock.now += 60
    async with asyncio.timeout(60):
        assert b'"key";r=2;' in await made.admit(key())
    assert away(made) is False
    said = [record.message for record in caplog.records if "storage of rate limits" in record.message]
    assert len(said) == 2
    assert "is away" in said[0]
    assert "is back" in said[1]
    await made.close()


async def test_one_request_tries_whether_a_storage_is_back(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = limits(rate_limit=100, rate_limit_storage=f"unix://{tmp_path}/none")
    assert made._shared is not None
    await made.admit(key())
    tried: list[str] = []

    async def silent(name: str, _: int) -> int:
        tried.append(name)
        await asyncio.Event().wait()
        return 1

    made._shared._again = 0
    # A server that has come and says nothing.
    monkeypatch.setattr(made._shared._storage, "incr", silent)
    await asyncio.gather(*(made.admit(key()) for _ in range(10)))
    assert len(tried) == 1
    await made.close()


async def test_a_storage_that_never_was_there_keeps_nobody_waiting(clock: Clock, tmp_path: Path) -> None:
    made = limits(rate_limit=2, rate_limit_storage=f"unix://{tmp_path}/none")
    async with asyncio.timeout(10):
        await made.admit(key())
        await made.admit(key())
        assert (await refused(made, key()))[0] == "key"
    assert away(made)
    await made.close()
