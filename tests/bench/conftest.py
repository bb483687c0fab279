"""The lab at a small scale, on the server of the test run."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import psycopg
import pytest
from psycopg import sql
from rich.progress import Progress

from crafely.bench.place import Place
from crafely.bench.report import Facts, Report
from crafely.bench.rounds import Plan
from crafely.config import Settings
from crafely.db import embedded

# Few, since each key that is verified costs argon2 once.
ROWS = 400
QUICK = Plan(rounds=2, seconds=0.1)


@pytest.fixture(scope="session")
def place(server: embedded.Server) -> Iterator[Place]:
    """The test run's server as one that is measured; the bench's databases are dropped at the end."""
    prefix = f"crafely_bench_{os.getpid()}"
    pgbench = server.bin / "pgbench"
    with psycopg.connect(server.url, autocommit=True) as connection:
        if connection.info.parameter_status("is_superuser") != "on":
            pytest.skip("the bench needs a superuser")
        yield Place(server.url, pgbench if pgbench.exists() else None, prefix)
        left = connection.execute("select datname from pg_database where datname ^@ %s", [prefix]).fetchall()
        for (name,) in left:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def progress() -> Progress:
    return Progress(disable=True)


def facts(**changes: object) -> Facts:
    return Facts(
        date=datetime(2026, 1, 31, tzinfo=UTC),
        crafely="1.0",
        commit=None,
        dirty=None,
        python="3.11",
        libraries={"psycopg": "3"},
        system="<Linux>",
        cpus=2,
        load=0.5,
        server={"server_version": "18"},
        rows={"api_keys": 10},
    )


def decoded(report: Report) -> Report:
    """The report after a way through its JSON."""
    return msgspec.json.decode(msgspec.json.encode(report), type=Report)
