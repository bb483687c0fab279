"""The desk's numbers for Prometheus: whose they are, and that nothing of what is gone stays."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from crafely.api import housekeeping, monitor_desk, monitor_metrics
from crafely.api.monitor_desk import Desk
from crafely.api.monitor_metrics import Metrics
from crafely.db.session import Session
from tests.api.conftest import Server, serving
from tests.api.test_housekeeping import becomes
from tests.auth.conftest import Signer
from tests.db.statements import opened

pytestmark = pytest.mark.asyncio(loop_scope="module")
alone = pytest.mark.asyncio(loop_scope="function")

Samples = dict[tuple[str, ...], float]


def samples(text: bytes, name: str) -> Samples:
    """The values of a metric, by the values of its labels in the order of their names."""
    return {
        tuple(value for _, value in sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text.decode())
        for one in family.samples
        if one.name == f"crafely_database_{name}"
    }


@pytest.fixture(scope="module")
def dba(module_database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("create extension pg_stat_statements")
        yield connection


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(module_database: str, dba: psycopg.Connection) -> AsyncIterator[Session]:
    async with opened(module_database, roles=["crafely_monitor"]) as database:
        yield database.session("crafely_monitor")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(session: Session) -> Desk:
    await monitor_desk.look(session)
    return await monitor_desk.look(session)


async def test_the_numbers_are_those_of_the_desk(desk: Desk) -> None:
    text = monitor_metrics.render(desk)
    files = {one.statement: one for one in desk.queries.data}
    assert len(files) > 5
    assert samples(text, "statement_calls_total") == {(name,): one.calls for name, one in files.items()}
    assert samples(text, "statement_seconds_total") == {
        (name,): pytest.approx(one.total_ms / 1000) for name, one in files.items()
    }
    rows = samples(text, "statement_rows_total")
    assert rows["monitor/overview",] == files["monitor/overview"].calls
    blocks = samples(text, "statement_blocks_total")
    assert set(blocks) == {(found, name) for name in files for found in ("hit", "read", "spilled")}
    whole = {one.name: one for one in desk.storage.data if one.parent is None}
    assert samples(text, "table_bytes") == {(name,): one.bytes for name, one in whole.items()}
    assert samples(text, "table_index_bytes") == {(name,): one.index_bytes for name, one in whole.items()}
    assert samples(text, "table_dead_rows") == {(name,): one.dead_rows for name, one in whole.items()}
    indexes = {one.name: one for one in desk.indexes.data}
    assert samples(text, "index_bytes") == {(name,): one.bytes for name, one in indexes.items()}
    assert samples(text, "index_scans_total") == {(name,): one.scans for name, one in indexes.items()}
    assert samples(text, "bytes") == {(): desk.overview.bytes}
    assert samples(text, "max_connections") == {(): desk.overview.max_connections}
    assert sum(samples(text, "connections").values()) == desk.overview.connections
    assert samples(text, "statements_counted") == {(): 1}
    # What is not known is not shown.
    assert samples(text, "days_to_full") == samples(text, "limit_bytes") == {}
    assert samples(text, "alerts") == {}


async def test_labels_are_few(desk: Desk) -> None:
    text = monitor_metrics.render(desk).decode()
    names = {name for family in text_string_to_metric_families(text) for one in family.samples for name in one.labels}
    assert names <= {"statement", "found", "table", "index", "state", "kind", "replica", "code"}
    assert len(text.splitlines()) < 1000
    assert "usage_y" not in text


async def test_an_index_that_is_dropped_is_shown_no_more(session: Session, dba: psycopg.Connection, desk: Desk) -> None:
    metrics = Metrics()
    assert metrics.turn()
    dba.execute("create index one on agents (name); create index two on agents (name)")
    metrics.keep(await monitor_desk.look(session))
    assert {("one",), ("two",)} <= set(samples(metrics.text(), "index_bytes"))
    assert samples(metrics.text(), "alerts") == {("duplicate_index",): 1}
    dba.execute("drop index one, two")
    metrics.keep(await monitor_desk.look(session))
    assert not {("one",), ("two",)} & set(samples(metrics.text(), "index_bytes"))
    assert samples(metrics.text(), "alerts") == {}


async def test_numbers_that_are_too_old_are_not_shown(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    assert metrics.text() == b""
    metrics.keep(desk)
    assert metrics.text() == monitor_metrics.render(desk)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert metrics.text() == b""


async def test_of_several_workers_one_takes_them_and_all_show_them(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    first, second = Metrics(), Metrics()
    assert (first.turn(), second.turn(), first.turn()) == (True, False, True)
    assert second.text() == b""
    first.keep(desk)
    assert second.text() == first.text() == monitor_metrics.render(desk)
    # What a worker leaves when it is killed is shown for a minute, and the next one's turn has come.
    first.close()
    assert second.turn()
    old = time.time() - 3600
    os.utime(tmp_path / "monitor.prom", (old, old))
    assert second.text() == b""
    second.keep(msgspec.structs.replace(desk, overview=msgspec.structs.replace(desk.overview, transaction_age=7)))
    assert samples(first.text(), "transaction_age") == {(): 7}
    second.close()


@alone
async def test_housekeeping_takes_the_numbers_and_a_scrape_asks_for_none(
    database_url: str, signer: Signer, superuser: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    superuser.execute("create extension pg_stat_statements")
    monkeypatch.setattr(housekeeping, "DESK", 0.05)
    async with serving(database_url, signer) as server:
        anyone = server.with_token("")

        async def shown() -> bytes:
            return (await anyone.get("/metrics")).raw

        while not samples(text := await shown(), "bytes"):
            pass
        assert samples(text, "statements_counted") == {(): 1}
        assert ("agents",) in samples(text, "table_bytes")
        assert asked(server) > 0


def asked(server: Server) -> int:
    found = server.sql(
        "select calls from pg_stat_statements where query like '%%crafely:monitor/overview%%' and toplevel"
        " and dbid = (select oid from pg_database where datname = current_database())"
    )
    return sum(calls for (calls,) in found)


@alone
async def test_scrapes_ask_the_database_for_nothing(
    database_url: str, signer: Signer, superuser: psycopg.Connection
) -> None:
    superuser.execute("create extension pg_stat_statements")
    async with serving(database_url, signer) as server:
        for _ in range(5):
            await server.with_token("").get("/metrics")
        assert asked(server) == 0
        assert server.sql(
            "select count(*) from pg_stat_activity"
            " where application_name = 'crafely monitor' and datname = current_database()"
        ) == [(0,)]


@alone
async def test_a_login_without_the_role_is_warned_of_once(
    database_url: str,
    signer: Signer,
    superuser: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    superuser.execute(
        "create role poor login noinherit; grant crafely_app, crafely_auth, crafely_meter, crafely_admin to poor"
    )
    monkeypatch.setattr(housekeeping, "DESK", 0.01)
    try:
        async with serving(psycopg.conninfo.make_conninfo(database_url, user="poor"), signer) as server:
            await becomes(lambda: caplog.text, lambda text: "no metrics of the database" in text)
            for _ in range(20):
                await server.with_token("").get("/metrics")
            assert caplog.text.count("no metrics of the database") == 1
            assert 'role "crafely_monitor"' in caplog.text
            assert "housekeeping failed" not in caplog.text
    finally:
        superuser.execute("drop role poor")
