"""Backups on a schedule: one of all who serve makes it, and whoever looks at the desk sees when none is made."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from crafely import keyring
from crafely.api import backups, housekeeping, monitor_desk
from crafely.api.backups import Backups
from crafely.api.monitor_alerts import alerts
from crafely.api.monitor_desk import BackupUse
from crafely.api.monitor_metrics import render
from crafely.config import Settings, load
from crafely.db.backup import folder
from tests.api.conftest import serving
from tests.api.test_housekeeping import becomes
from tests.api.test_monitor_metrics import samples
from tests.auth.conftest import Signer
from tests.cli.conftest import environment
from tests.db.statements import opened


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def settings(database_url: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a process is started with, and those that it starts."""
    for name in [name for name in os.environ if name.startswith("CRAFELY_")]:
        monkeypatch.delenv(name)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    monkeypatch.setenv("CRAFELY_BACKUP_DIR", str(place))
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", keyring.generate("first"))
    return load()


def states(place: Path) -> list[str]:
    return [one.state for one in folder.every(place)]


async def test_it_is_made_when_it_is_due_and_by_one(settings: Settings, place: Path) -> None:
    one, other = Backups(settings), Backups(settings)
    assert one.use() == BackupUse(hours=24, started_at=None, bytes=None)
    await asyncio.gather(one.make_due(), other.make_due())
    await one.make_due()
    assert states(place) == ["complete"]
    use = one.use()
    assert use is not None
    assert use.started_at is not None
    assert datetime.now(UTC) - use.started_at < timedelta(hours=1)
    (made,) = folder.every(place)
    assert made.manifest is not None
    assert use.bytes == made.manifest.bytes > 0


async def test_who_serves_makes_it(
    settings: Settings, place: Path, database_url: str, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BACKUPS", 0.05)
    async with serving(database_url, signer, backup_dir=place):
        await becomes(lambda: states(place), lambda found: found == ["complete"])


async def test_none_is_made_unless_a_folder_is_named(settings: Settings, place: Path) -> None:
    off = load({})
    assert Backups(off).use() is None
    await Backups(off).make_due()
    assert states(place) == []


async def test_one_that_fails_is_told_and_not_tried_again_at_once(
    settings: Settings, place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = settings.database_url or ""
    monkeypatch.setenv("CRAFELY_DATABASE_URL", url.replace("dbname=", "dbname=no_") + " password=hunter2")
    schedule = Backups(settings)
    await schedule.make_due()
    (said,) = [one.getMessage() for one in caplog.records if one.name == backups.__name__]
    assert said.startswith("no backup was made: crafely: cannot use the database")
    assert "hunter2" not in said
    monkeypatch.setenv("CRAFELY_DATABASE_URL", url)
    await schedule.make_due()
    assert states(place) == []
    monkeypatch.setattr(schedule, "_not_before", 0)
    await schedule.make_due()
    assert states(place) == ["complete"]


async def test_the_end_of_the_server_is_the_end_of_it(settings: Settings, place: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as blocker:
        blocker.execute("lock table usage_daily in access exclusive mode")
        task = asyncio.create_task(Backups(settings).make_due())
        await becomes(lambda: states(place), lambda found: found == ["unfinished"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert states(place) == []


def test_a_folder_that_cannot_be_read_is_told(place: Path) -> None:
    place.touch()
    use = Backups(load({"CRAFELY_BACKUP_DIR": str(place)})).use()
    assert use == BackupUse(hours=24, started_at=None, bytes=None, problem=f"{place}: Not a directory")


AGES = [
    (None, None, "warning", "there is no backup yet"),
    (None, "no permission", "critical", "backups cannot be looked at (no permission)"),
    (47, None, None, ""),
    (49, None, "critical", "the newest backup is 49 h old, and one is due every 24 h"),
]


@pytest.mark.parametrize(("age", "problem", "severity", "message"), AGES)
async def test_the_desk_tells_when_it_is_late(
    database_url: str, age: float | None, problem: str | None, severity: str | None, message: str
) -> None:
    made = datetime.now(UTC) - timedelta(hours=age) if age else None
    async with opened(database_url, roles=["crafely_monitor"]) as database:
        use = BackupUse(hours=24, started_at=made, bytes=5 if age else None, problem=problem)
        desk = await monitor_desk.look(database.session("crafely_monitor"), backup=use)
        again = await monitor_desk.look_again(database.session("crafely_monitor"), desk)
    assert again.backup == use
    said = [(one.severity, one.message) for one in alerts(desk) if one.code == "backup_late"]
    assert said == ([(severity, message)] if severity else [])
    shown = samples(render(desk), "backup_age_seconds")
    assert [round(value / 3600) for value in shown.values()] == ([age] if age else [])
    assert samples(render(desk), "backup_bytes") == ({(): 5} if age else {})
    assert samples(render(desk), "alerts").get(("backup_late",)) == (1 if severity else None)
