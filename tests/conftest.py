"""A real PostgreSQL for every test: a server for the run, a migrated template, a database of its own for each test.

The server is the wheel's, in a temporary folder; ``CRAFELY_TEST_POSTGRES`` names another: the folder of its programs
(/usr/lib/postgresql/15/bin) or the URL of one that runs (postgresql://…, a login that may create databases and roles).
With ``CRAFELY_TEST_STANDBY`` it has a standby, and whatever serves on it reads there what it may.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.api.replica import Standby
from crafely.config import Settings
from crafely.db import embedded, migrate
from crafely.db.session import Database, Identity, Session
from tests import pooler

# A test's database takes about 15 ms to make and 7 to drop: without a disk to wait for, copying files is quicker than
# writing them to the log, and the drop finds nothing to write out (which would take 100 ms).
COPY = "strategy file_copy"

# Where there is room in memory, all that is temporary is there: some hundred servers and thousands of databases come
# and go, and a disk may take a quarter of a second for the six hundred files of one (ext4, after many were deleted).
_MEMORY = Path("/dev/shm")  # noqa: S108 - every folder in it is made by mkdtemp, or by pytest, which sees whose it is
_ROOM = 8 * 2**30

if "TMPDIR" not in os.environ and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM:
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None  # it is asked for again

# A shell has its background jobs ignore Ctrl-C, and children inherit that: what stops a program here would not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a server of a test stores texts with.
ENCRYPTION_KEY = "test:" + "dGVz" * 10 + "dGU="

_names = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the first fixture is made."""
    pooler.between.direct = item.get_closest_marker("direct") is not None


@pytest.fixture(scope="session")
def server() -> Iterator[embedded.Server]:
    """The server of this run, and the programs that fit it."""
    named = os.environ.get("CRAFELY_TEST_POSTGRES", "")
    if named.startswith("postgres"):
        yield embedded.Server(url=named, bin=Path(shutil.which("psql") or "/usr/bin/psql").parent)
        return
    with ExitStack() as stack:
        # Nothing of a test run outlives a power cut, so it need not wait for the disk.
        options = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
        # Every test has a database of its own, whose statements count apart: room for all of them.
        options["pg_stat_statements.max"] = "100000"
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crafely-test-", ignore_cleanup_errors=True))
        programs = Path(named) if named else None
        if not os.environ.get("CRAFELY_TEST_STANDBY"):
            yield stack.enter_context(embedded.running(Path(folder), postgres_bin=programs, options=options))
            return
        # What is acknowledged can be on its way there: fsync is off all the same.
        options |= {"synchronous_commit": "on", "wal_keep_size": "1GB"}
        server = stack.enter_context(embedded.running(Path(folder), postgres_bin=programs, options=options))
        stack.enter_context(_followed(server, Path(folder), options))
        yield server


@contextmanager
def _followed(server: embedded.Server, folder: Path, options: Mapping[str, str]) -> Iterator[None]:
    """Gives the server of the run, in its folder, a standby, which replica_of knows from then on."""
    from tests.cli.conftest import new_folder  # noqa: PLC0415 - it stands on this module
    from tests.standby import Node  # noqa: PLC0415 - see above

    with new_folder() as home:
        standby = Node(home / "standby", programs=server.bin, **options)
        _standbys[server.url] = standby.standby_of(Node(folder, programs=server.bin))
        try:
            yield
        finally:
            del _standbys[server.url]
            standby.stop()


# The standby of the run's server, by the server's URL; none but with CRAFELY_TEST_STANDBY.
_standbys: dict[str, Any] = {}


def replica_of(url: str) -> str | None:
    """Where a database of the run's server is read from; None where that has no standby, and for what is not there."""
    for server, standby in _standbys.items():
        with suppress(psycopg.ProgrammingError):
            parts: dict[str, Any] = conninfo_to_dict(url)
            if parts.get("host") == conninfo_to_dict(server).get("host"):
                return make_conninfo(**{**conninfo_to_dict(standby.url), "dbname": parts.get("dbname", "")})
    return None


@pytest.fixture(scope="session", autouse=pooler.ASKED_FOR)
def behind_a_pooler(server: embedded.Server) -> Iterator[None]:
    """PgBouncer before all that works on the server of this run: make test POOLER=1."""
    with pooler.between.before(server.url):
        yield


@pytest.fixture(scope="session")
def template(server: embedded.Server) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    name = f"crafely_template_{os.getpid()}"
    _administer(server, f"create database {name}")
    migrate.up(_url(server, name))
    yield name
    _administer(server, f"drop database {name} with (force)")


@pytest.fixture
def database_url(server: embedded.Server, template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own, as the server's superuser."""
    name = f"crafely_test_{os.getpid()}_{next(_names)}"
    _administer(server, f"create database {name} template {template} {COPY}")
    yield _url(server, name)
    _administer(server, f"drop database {name} with (force)")


@pytest.fixture(scope="module")
def module_database(server: embedded.Server, template: str) -> Iterator[str]:
    """The URL of a migrated database for the tests of one module."""
    name = f"crafely_module_{os.getpid()}_{next(_names)}"
    _administer(server, f"create database {name} template {template} {COPY}")
    yield _url(server, name)
    _administer(server, f"drop database {name} with (force)")


@pytest.fixture
def empty_database(server: embedded.Server) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = f"crafely_empty_{os.getpid()}_{next(_names)}"
    _administer(server, f"create database {name} {COPY}")
    yield _url(server, name)
    _administer(server, f"drop database {name} with (force)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The pools on the test's database."""
    database = Database(database_url, size=4, pool_timeout=5, statement_timeout=10)
    await database.open()
    standby = Standby(Settings(replica_url=replica_of(database_url)), database)
    await standby.open()
    yield database
    await standby.close()
    await database.close()


@pytest.fixture
def alice(database: Database) -> Session:
    """What user alice may do."""
    return database.session("crafely_app", Identity("alice", request_id="test"))


@pytest.fixture
def bob(database: Database) -> Session:
    """What user bob may do."""
    return database.session("crafely_app", Identity("bob", request_id="test"))


@pytest.fixture
def superuser(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection that sees everything, to look at what is really stored."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def psql(server: embedded.Server, database_url: str) -> "Psql":
    """Runs psql on the test's database."""
    return Psql(server, database_url)


class Psql:
    """psql, as a DBA would run it."""

    def __init__(self, server: embedded.Server, url: str) -> None:
        self._program = str(server.bin / "psql")
        self._url = url

    def __call__(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self._program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self._url, *arguments]
        return subprocess.run(command, input=script, capture_output=True, text=True, check=False, timeout=30)


def _url(server: embedded.Server, name: str) -> str:
    parts: dict[str, Any] = conninfo_to_dict(server.url)
    return make_conninfo(**{**parts, "dbname": name})


def _administer(server: embedded.Server, statement: str) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(statement.encode())
    if server.url in _standbys and statement.startswith("create"):
        # What is not there yet is left alone for longer than most tests take.
        _standbys[server.url].caught_up_with(server.url)
