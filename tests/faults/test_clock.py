"""The machine's clock is moved: what ends at a time ends by the clock, and nothing else takes notice."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crafely.auth import key_cache
from tests.api.conftest import Server, introduce
from tests.api.conftest import own as own  # noqa: PLC0414 - a fixture
from tests.api.conftest import signer as signer  # noqa: PLC0414 - a fixture

PACKAGE = Path(key_cache.__file__).parents[1]
# Who may ask what time it is: expiry, what is shown or stored, ages of files, and the minutes of rate limits, which
# workers share: another minute is another count. All waiting is by monotonic clocks.
BY_THE_CLOCK = {
    "api/answer.py",
    "api/monitor_metrics.py",
    "api/services.py",
    "auth/key_cache.py",
    "auth/rate_limits.py",
}


async def test_a_key_ends_by_the_clock_however_that_is_moved(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = (await introduce(own)).alice
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    body = {"name": "short", "permissions": ["agents:read"], "expiresAt": ends}
    short = own.with_token((await alice.post("/v1/api-keys", body))["key"])
    await short.get("/v1/me")
    statements = own.sql("select count(*) from api_keys")
    for hours, status in ((2, 401), (-2, 200), (2, 401), (0, 200)):
        monkeypatch.setattr(key_cache, "time", lambda hours=hours: time.time() + hours * 3600)
        await short.get("/v1/me", expect=status)
        # A key without an end is not touched by it, and nothing was forgotten or believed for longer.
        await alice.get("/v1/me")
    assert own.sql("select count(*) from api_keys") == statements


def test_all_waiting_is_by_a_clock_that_nobody_moves() -> None:
    wall = re.compile(r"\btime\.time\(\)|from time import [^\n]*\btime\b")
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if wall.search(path.read_text())}
    assert {path for path in found if not path.startswith("bench/")} == BY_THE_CLOCK
