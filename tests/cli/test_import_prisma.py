"""``crafely import prisma``: what comes over, what does not, and what an import that was killed leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely import keyring
from crafely.db import embedded, prisma
from crafely.db.prisma import load
from tests.cli.conftest import Command, environment
from tests.conftest import ENCRYPTION_KEY
from tests.db.rows import everything

FOLDER = Path(__file__).parents[1] / "db"
RING = keyring.parse(ENCRYPTION_KEY)
# How many rows there are: what `make import-prisma` says, or so many that a test may have.
KEYS, RECORDS = int(os.environ.get("IMPORT_KEYS", "300")), int(os.environ.get("IMPORT_RECORDS", "1000"))
IS_BIG = KEYS > 300
SECONDS = 3600 if IS_BIG else 120


@contextmanager
def new_source(server: embedded.Server, name: str) -> Iterator[str]:
    url = make_conninfo(server.url, dbname=name)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute((FOLDER / "prisma.sql").read_bytes())
            yield url
    finally:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())


def fill(url: str, keys: int, records: int) -> None:
    text = (FOLDER / "prisma_fill.sql").read_text().replace("{keys}", str(keys)).replace("{records}", str(records))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text.encode())
        connection.execute("analyze")


@pytest.fixture(scope="module")
def filled(server: embedded.Server) -> Iterator[str]:
    """A source that nobody changes."""
    with new_source(server, f"crafely_source_{os.getpid()}") as url:
        fill(url, KEYS, RECORDS)
        yield url


@pytest.fixture
def source(server: embedded.Server) -> Iterator[str]:
    """A source with nothing in it."""
    with new_source(server, f"crafely_bare_source_{os.getpid()}") as url:
        yield url


@pytest.fixture
def command(database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in [name for name in os.environ if name.startswith("CRAFELY_") and name != "CRAFELY_TEST_POSTGRES"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CRAFELY_DATABASE_URL", database_url)
    monkeypatch.setenv("CRAFELY_ENCRYPTION_KEYS", ENCRYPTION_KEY)
    return Command(capsys)


def ask(url: str, text: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        connection.execute("set timezone = 'utc'; set extra_float_digits = 1")
        return connection.execute(text.encode()).fetchall()


# The same rows, asked of both sides: not the statements of the import.
SIDES = {
    "packages": (
        """select id, name, description, price::text, coalesce(features, '{}'), "interval", active, "createdAt",
            "updatedAt", null::int from "Package" """,
        """select id, name, description, price::float8::text, features, "interval", active, created_at::timestamp,
            updated_at::timestamp, rate_limit from packages""",
    ),
    "api_keys": (
        """select id, "keyId", "hashedKey", name, prefix, coalesce(permissions, '{}'), active, "createdAt", "updatedAt",
            "lastUsedAt", "userId", null::timestamp, null::text, null::int from "ApiKey" """,
        """select id, key_id, hashed_key, name, prefix, permissions, active, created_at::timestamp,
            updated_at::timestamp, last_used_at::timestamp, user_id, expires_at::timestamp, rotated_from, rate_limit
            from api_keys""",
    ),
    "agents": (
        """select id, name, instructions, tools::jsonb, context, "createdAt", "updatedAt", "deletedAt", "userId"
            from "Agent" """,
        """select id, name, instructions, tools, context, created_at::timestamp, updated_at::timestamp,
            deleted_at::timestamp, user_id from agents""",
    ),
    "threads": (
        """select id, name, "storageId", instructions, model, "createdAt", "updatedAt", "deletedAt", "userId",
            "agentId" from "Thread" """,
        """select id, name, storage_id, instructions, model, created_at::timestamp, updated_at::timestamp,
            deleted_at::timestamp, user_id, agent_id from threads""",
    ),
    "user_subscriptions": (
        """select id, status, "startDate", "endDate", "createdAt", "updatedAt", "userId", "packageId"
            from "UserSubscription" """,
        """select id, status, start_date::timestamp, end_date::timestamp, created_at::timestamp,
            updated_at::timestamp, user_id, package_id from user_subscriptions""",
    ),
    "usage": (
        """select id, "createdAt", "apiKeyId", "userId", provider, model, type, "tokensIn", "tokensOut", "tokensTotal",
            trim_scale(cost), currency, metadata, null::text from "Usage" """,
        """select id, created_at::timestamp, api_key_id, user_id, provider, model, type, tokens_in, tokens_out,
            tokens_total, trim_scale(cost), currency, metadata, event_id from usage""",
    ),
}


def opened(table: str, rows: list[Any]) -> list[Any]:
    """The rows with their texts, all of which must be sealed."""
    places = {"agents": {"instructions": 2, "context": 4}, "threads": {"instructions": 3}}.get(table, {})
    found = []
    for row in rows:
        texts = list(row)
        for column, place in places.items():
            if texts[place] is not None:
                assert texts[place].startswith("crafely:1:test:")
                texts[place] = RING.open(texts[place], table, column, row[0])
        found.append(tuple(texts))
    return found


def sums(url: str, text: str) -> list[Any]:
    """What many rows are, in two numbers."""
    digest = "select count(*), sum(('x' || right(md5(t::text), 15))::bit(60)::bigint) from ({rows}) as t"
    return ask(url, digest.replace("{rows}", text))


def same_rows(source: str, destination: str) -> None:
    for table, (theirs, ours) in SIDES.items():
        if IS_BIG and table in {"api_keys", "usage"}:
            assert sums(destination, ours) == sums(source, theirs), table
            continue
        wanted = sorted(ask(source, theirs), key=lambda row: row[0])
        found = sorted(opened(table, ask(destination, ours)), key=lambda row: row[0])
        assert wanted, table
        assert found == wanted, table


def count(url: str, table: str) -> str:
    with psycopg.connect(url) as connection:
        text = sql.SQL("select count(*)::text from {}").format(sql.Identifier(table))
        (found,) = connection.execute(text).fetchone() or ("",)
        return str(found)


def whole(command: Command, destination: str, tables: int = 6) -> None:
    """Nothing of an import is left, and the database is what it would be without one."""
    assert ask(destination, "select to_regnamespace('crafely_import')::text") == [(None,)]
    assert command("usage", "reconcile") == 0, command.out
    assert command("migrate", "status") == 0, command.out
    assert "objects: all are as the migrations make them" in command.out
    ask(destination, "select seal_audit_log()")
    assert command("audit", "verify") == 0, command.out
    assert ask(destination, "select count(*) from usage_default") == [(0,)]
    trail = ask(
        destination,
        "select table_name, new ->> 'imported_rows', row_id, request_id from audit_log where action = 'insert'"
        " and request_id is not null order by id",
    )
    counts = {table: count(destination, table) for table in SIDES}
    assert trail == [(table, count, None, "crafely import prisma") for table, count in counts.items()]
    assert ask(destination, "select count(*) from audit_log where table_name <> 'encryption_keys'") == [(tables,)]


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_everything_comes_over(command: Command, filled: str, database_url: str, tmp_path: Path) -> None:
    before = everything(database_url)
    rehearsed = command.json("import", "prisma", "--from", filled, "--dry-run")
    assert (rehearsed["is_dry_run"], rehearsed["is_complete"]) == (True, True)
    assert everything(database_url) == before

    report = tmp_path / "report"
    done = command.json("import", "prisma", "--from", filled, "--report", str(report))
    assert (done["is_complete"], done["is_resumed"], done["refused"]) == (True, False, [])
    tenth = KEYS // 10 + 1
    assert [one["taken"] for one in done["tables"]] == [20, KEYS, tenth, KEYS // 20 + 1, tenth, RECORDS]
    # The texts are sealed anew each time, and their checksum is that of what they say.
    assert done["tables"] == rehearsed["tables"]
    same_rows(filled, database_url)
    whole(command, database_url)

    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert {line["taken"] for line in lines} == {True}
    unusable = ask(filled, """select id from "ApiKey" where "hashedKey" !~ '^.argon2id' or "keyId" ~ '^pk-'""")
    assert {line["id"] for line in lines} == {id_ for (id_,) in unusable}
    assert done["unusable"] == len(unusable)
    assert "$2b$" not in report.read_text()

    # Once is enough.
    assert command("import", "prisma", "--from", filled) == 1
    assert command.err.startswith("crafely: the database holds rows already (in packages, api_keys, agents, threads, ")


# Runs the command with chunks of so many rows, and is killed when it wakes the triggers for the n-th time: rows have
# been taken, and not committed.
KILLED = """
import os, signal, sys
from crafely.cli import commands
from crafely.db import prisma
from crafely.db.prisma import compare
prisma.CHUNK_ROWS = int(sys.argv[1])
left, wake = int(sys.argv[2]), compare.wake
def dying(*words):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    wake(*words)
compare.wake = dying
sys.exit(commands.run(sys.argv[3:]))
"""


def run(destination: str, source: str, *, chunk: int, kill_at: int) -> subprocess.CompletedProcess[str]:
    words = [str(chunk), str(kill_at), "import", "prisma", "--from", source, "--json"]
    return subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        env=environment(CRAFELY_DATABASE_URL=destination),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


# The first one makes the place to work in; there are thirteen until all is taken, and more while it is compared.
@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_killed_at_several_points_it_ends_complete_and_equal(command: Command, filled: str, database_url: str) -> None:
    reads = []
    for kill_at in (1, 2, 9, 8):
        done = run(database_url, filled, chunk=150, kill_at=kill_at)
        assert done.returncode == -signal.SIGKILL, done
        if ask(database_url, "select to_regnamespace('crafely_import')::text") != [(None,)]:
            reads += ask(database_url, "select coalesce(sum(rows_read), 0)::int from crafely_import.progress")
        # Nothing rests when nobody is at work.
        assert ask(database_url, "select count(*) from pg_trigger where tgenabled = 'D'") == [(0,)]
        assert ask(database_url, "select relforcerowsecurity from pg_class where oid = 'usage'::regclass") == [(True,)]
    # Before the first row, among the records, and while both sides are compared.
    taken = KEYS + 20 + 2 * (KEYS // 10 + 1) + KEYS // 20 + 1
    assert reads == [(0,), (taken + 300,), (taken + RECORDS,)]
    done = run(database_url, filled, chunk=150, kill_at=0)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["is_resumed"] is True
    same_rows(filled, database_url)
    whole(command, database_url)


@pytest.mark.skipif(not IS_BIG, reason="make import-prisma")
def test_a_large_one_that_is_killed_once_ends_complete_and_equal(
    command: Command, filled: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.monotonic()
    # In the middle of the records: before them are the place to work in, and a chunk for each 100,000 of other rows.
    before = 5 + KEYS // 100_000 * 12 // 10
    done = run(database_url, filled, chunk=100_000, kill_at=before + RECORDS // 200_000)
    assert done.returncode == -signal.SIGKILL, done
    killed = time.monotonic() - begin
    ((rows,),) = ask(database_url, "select sum(rows_read)::int from crafely_import.progress")
    done = run(database_url, filled, chunk=100_000, kill_at=0)
    assert done.returncode == 0, done
    report = json.loads(done.stdout)
    assert report["is_resumed"] is True
    same_rows(filled, database_url)
    whole(command, database_url)
    size = ask(database_url, "select pg_size_pretty(pg_database_size(current_database()))")[0][0]
    lines = [f"killed after {killed:.0f} s with {rows:,} rows; complete in {report['seconds']:.0f} s more; {size}"]
    lines += [
        f"| {one['source']} | {one['read']:,} | {one['taken']:,} | {one['refused']} | {one['checksum']} |"
        for one in report["tables"]
    ]
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *lines, ""]))


NOW = "2024-05-06 07:08:09"
# What cannot be taken: rows of a table with these columns, the column that the report names, and a word of the rule.
BAD: list[tuple[str, dict[str, str], str, str]] = [
    ("Package", {"name": "''"}, "name", "1 to 255"),
    ("Package", {"name": "repeat('x', 256)"}, "name", "1 to 255"),
    ("Package", {"price": "9.999"}, "price", "two decimal places"),
    ("Package", {"price": "-1"}, "price", "from 0"),
    ("Package", {"price": "'nan'"}, "price", "from 0"),
    ("Package", {"price": "'infinity'"}, "price", "from 0"),
    ("Package", {"features": "array_fill('x'::text, '{101}')"}, "features", "at most 100"),
    ("Package", {"features": "'{a,null}'"}, "features", "null in it"),
    ("Package", {"features": "'{{a},{b}}'"}, "features", "plain list"),
    ("Package", {"interval": "'week'"}, "interval", "month or year"),
    ("ApiKey", {"keyId": "''"}, "keyId", "1 to 255"),
    ("ApiKey", {"name": "''"}, "name", "or null"),
    ("ApiKey", {"userId": "''"}, "userId", "user id"),
    ("ApiKey", {"permissions": "array_fill('x'::text, '{65}')"}, "permissions", "at most 64"),
    ("ApiKey", {"permissions": "'{CHAT}'"}, "permissions", "lowercase"),
    ("ApiKey", {"permissions": "'{null}'"}, "permissions", "lowercase"),
    ("ApiKey", {"permissions": "'{{a},{b}}'"}, "permissions", "lowercase"),
    ("ApiKey", {"permissions": "'{chat,admin}'"}, "permissions", "administrators"),
    ("ApiKey", {"lastUsedAt": "'infinity'"}, "lastUsedAt", "years"),
    ("ApiKey", {"createdAt": "'0044-03-15 BC'"}, "createdAt", "years"),
    ("Agent", {"name": "''"}, "name", "1 to 255"),
    ("Agent", {"tools": "''"}, "tools", "JSON array"),
    ("Agent", {"tools": "'{}'"}, "tools", "JSON array"),
    ("Agent", {"tools": "'[NaN]'"}, "tools", "JSON array"),
    ("Agent", {"tools": r"'[\"\\u0000\"]'".replace("\\\\", "\\").replace('\\"', '"')}, "tools", "JSON array"),
    ("Agent", {"tools": "repeat('[', 100000)"}, "tools", "JSON array"),
    ("Thread", {"storageId": "''"}, "storageId", "1 to 255"),
    ("Thread", {"model": "repeat('x', 256)"}, "model", "1 to 255"),
    ("Thread", {"agentId": "'agnt_other'"}, "agentId", "same user"),
    ("UserSubscription", {"status": "'paused'"}, "status", "cancelled"),
    ("UserSubscription", {"status": "'active'", "packageId": "'pkg_two'"}, "status", "newer"),
    ("UserSubscription", {"endDate": "'2000-01-01'"}, "endDate", "before"),
    ("UserSubscription", {"packageId": "'Package_1'"}, "packageId", "taken"),
    ("Usage", {"apiKeyId": "'key_other'"}, "apiKeyId", "same user"),
    ("Usage", {"apiKeyId": "'ApiKey_11'"}, "apiKeyId", "taken"),
    ("Usage", {"provider": "''"}, "provider", "or null"),
    ("Usage", {"model": "repeat('x', 256)"}, "model", "or null"),
    ("Usage", {"type": "''"}, "type", "or null"),
    ("Usage", {"tokensIn": "-1"}, "tokensIn", "0 or more"),
    ("Usage", {"tokensOut": "-1"}, "tokensOut", "0 or more"),
    ("Usage", {"tokensTotal": "-1"}, "tokensTotal", "0 or more"),
    ("Usage", {"cost": "-0.000001"}, "cost", "0 or more"),
    ("Usage", {"cost": "'nan'"}, "cost", "0 or more"),
    ("Usage", {"currency": "'USD'"}, "currency", "lowercase"),
    ("Usage", {"metadata": "'[]'"}, "metadata", "JSON object"),
    ("Usage", {"metadata": "'null'"}, "metadata", "JSON object"),
    ("Usage", {"createdAt": "'infinity'"}, "createdAt", "years"),
]
# What a row is otherwise, and each of which there is one without a fault.
GOOD = {
    "Package": {"name": "'{id}'", "price": "1.5", "updatedAt": f"'{NOW}'"},
    "ApiKey": {"keyId": "'{id}'", "hashedKey": "'s3cr3t'", "userId": "'u'", "updatedAt": f"'{NOW}'"},
    "Agent": {"name": "'a'", "instructions": "'i'", "userId": "'u'", "updatedAt": f"'{NOW}'"},
    "Thread": {"name": "'t'", "userId": "'u'", "updatedAt": f"'{NOW}'"},
    "UserSubscription": {
        "status": "'expired'",
        "startDate": f"'{NOW}'",
        "userId": "'u'",
        "packageId": "'pkg_two'",
        "createdAt": "'2020-01-01'",
        "updatedAt": f"'{NOW}'",
    },
    "Usage": {"apiKeyId": "'ApiKey_good'", "userId": "'u'", "createdAt": f"'{NOW}'"},
}


def insert(url: str, table: str, id_: str, **columns: str) -> None:
    values = {"id": f"'{id_}'", **GOOD[table], **columns}
    among = sql.SQL(", ").join(sql.Identifier(name) for name in values)
    texts = sql.SQL(", ").join(sql.SQL(text.replace("{id}", id_)) for text in values.values())
    with psycopg.connect(url) as connection:
        connection.execute(sql.SQL("insert into {} ({}) values ({})").format(sql.Identifier(table), among, texts))


@pytest.fixture
def faulty(source: str) -> tuple[str, dict[str, tuple[str, str, str]]]:
    """A source with each fault once, and a row of each table without; and the faults by id."""
    for table in GOOD:
        if table == "UserSubscription":
            insert(source, "Package", "pkg_two")
            insert(source, table, "sub_newest", status="'active'", createdAt=f"'{NOW}'")
        insert(source, table, f"{table}_good")
        if table == "ApiKey":
            insert(source, table, "key_other", userId="'other'")
        if table == "Agent":
            insert(source, table, "agnt_other", userId="'other'")
        for number, (bad, columns, *_) in enumerate(BAD):
            if bad == table:
                insert(source, table, f"{table}_{number}", **columns)
    return source, {f"{table}_{number}": (table, column, rule) for number, (table, _, column, rule) in enumerate(BAD)}


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_what_cannot_be_taken_is_told_row_by_row(
    command: Command, faulty: tuple[str, dict[str, tuple[str, str, str]]], database_url: str, tmp_path: Path
) -> None:
    source, faults = faulty
    path = tmp_path / "report"
    words = ("import", "prisma", "--from", source, "--report", str(path))
    assert command(*words, "--json") == 1
    said = json.loads(command.out)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    refused = {line["id"]: line for line in lines if not line["taken"]}
    assert {id_: (line["table"], line["column"]) for id_, line in refused.items()} == {
        id_: (table, column) for id_, (table, column, _) in faults.items()
    }
    for id_, (_, _, rule) in faults.items():
        assert rule in refused[id_]["rule"], id_
    assert len(refused) == len([line for line in lines if not line["taken"]]), "one rule for each fault"
    assert sum(one["refused"] for one in said["tables"]) == len(BAD) == sum(one["rows"] for one in said["refused"])
    assert said["is_complete"] is False
    assert "s3cr3t" not in path.read_text() + command.out + command.err
    # People read the same, and are told what to do.
    assert command(*words) == 1
    assert "mend them in the source and run this again, or say --leave-behind" in command.err

    # Some are mended, among them a key that usage waits for; others go.
    first_key = "ApiKey_11"
    with psycopg.connect(source) as connection:
        connection.execute('update "ApiKey" set "name" = null where "id" = %s', [first_key])
        connection.execute("""update "Usage" set "metadata" = '{}' where "metadata" = '[]'""")
        connection.execute("""delete from "Usage" where "currency" = 'USD'""")
    assert command(*words, "--json") == 1
    again = {line["id"] for line in map(json.loads, path.read_text().splitlines()) if not line["taken"]}
    ways: list[dict[str, str]] = [{"currency": "'USD'"}, {"metadata": "'[]'"}, {"apiKeyId": f"'{first_key}'"}]
    mended = {first_key, *(f"Usage_{number}" for number, bad in enumerate(BAD) if bad[1] in ways)}
    assert again == faults.keys() - mended

    assert command(*words, "--leave-behind") == 0, command.err
    with psycopg.connect(source) as connection:
        for table in reversed(GOOD):
            text = sql.SQL("delete from {} where id = any(%s)").format(sql.Identifier(table))
            connection.execute(text, [list(again)])
    same_rows(source, database_url)
    whole(command, database_url)


def refuses(command: Command, source: str, *words: str) -> str:
    """The one line that it says. It changes nothing."""
    assert command("import", "prisma", "--from", source, *words) == 1
    assert command.out == ""
    (line,) = command.err.splitlines()
    return line.removeprefix("crafely: ")


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_a_source_that_is_not_as_the_models_are_is_refused(
    command: Command, filled: str, source: str, database_url: str
) -> None:
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute('alter table "ApiKey" drop column "lastUsedAt"')
        connection.execute('alter table "Usage" alter column "cost" type numeric(12,8)')
        connection.execute('alter table "Agent" alter column "name" drop not null')
        connection.execute('alter table "Thread" add column "color" text')
        connection.execute('drop table "UserSubscription"')
    line = refuses(command, source)
    assert "ApiKey.lastUsedAt: is missing" in line
    assert "Usage.cost: is numeric(12,8), and numeric(10,6) is expected" in line
    assert "Agent.name: may be null, which is not expected" in line
    assert "Thread.color: is unknown here, and would stay behind" in line
    assert "UserSubscription.id: there is no such table" in line
    assert refuses(command, source, "--schema", "nowhere") == "the source has no schema nowhere: say it with --schema"
    assert ask(database_url, "select to_regnamespace('crafely_import')::text") == [(None,)]


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_columns_that_are_more_stay_behind_when_somebody_says_so(
    command: Command, source: str, database_url: str
) -> None:
    for table in GOOD:
        if table == "UserSubscription":
            insert(source, "Package", "pkg_two")
        insert(source, table, f"{table}_good")
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute('alter table "Thread" add column "color" text')
    assert "Thread.color: is unknown here" in refuses(command, source)
    done = command.json("import", "prisma", "--from", source, "--leave-behind", "--dry-run")
    assert done["left_columns"] == ["Thread.color"]
    assert command("import", "prisma", "--from", source, "--leave-behind") == 0, command.err
    assert command.err.startswith("left behind, because nothing here is like them: Thread.color\n")
    same_rows(source, database_url)


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_a_source_that_was_changed_meanwhile_is_found_out(
    command: Command, source: str, filled: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in GOOD:
        if table == "UserSubscription":
            insert(source, "Package", "pkg_two")
        insert(source, table, f"{table}_good")
    insert(source, "Package", "bad", price="-1")
    assert command("import", "prisma", "--from", source) == 1
    with psycopg.connect(source) as connection:
        connection.execute('delete from "Package" where "price" < 0')
        connection.execute("""update "Agent" set "context" = 'new'""")
    insert(source, "Usage", "late")
    line = refuses(command, source)
    assert "not the same on both sides: Agent (1 rows here, 1 in the source), Usage (1 rows here, 2 in" in line
    assert refuses(command, filled).startswith("an import of another source was begun in this database")


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_a_source_whose_rows_moved_is_found_out_when_an_import_goes_on(
    command: Command, source: str, database_url: str
) -> None:
    fill(source, 100, 300)
    # Some chunks of usage are here, and some are not.
    assert run(database_url, source, chunk=50, kill_at=10).returncode == -signal.SIGKILL
    ((read,),) = ask(database_url, "select rows_read::int from crafely_import.progress where table_name = 'usage'")
    assert 0 < read < 300
    with psycopg.connect(source, autocommit=True) as connection:
        # A row that was taken stands at the end now.
        connection.execute("""update "Usage" set "type" = 'x' where ctid = '(0,1)'""")
    assert refuses(command, source).startswith("a row of Usage came twice: the source was changed since")
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute('vacuum full "Usage"')
    assert refuses(command, source).startswith("Usage was written anew since this import began")
    # As it says.
    name = str(conninfo_to_dict(database_url)["dbname"])
    assert command("migrate", "reset", "--force", name) == 0, command.err
    assert command.json("import", "prisma", "--from", source)["is_resumed"] is False
    same_rows(source, database_url)


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_what_fails_in_the_middle_is_one_line(
    command: Command, filled: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    take = vars(load)["_take"]

    def failing(connection: Any, table: prisma.Table, *words: Any) -> None:
        if table.name == "api_keys":
            raise prisma.PrismaError("no more")
        take(connection, table, *words)

    monkeypatch.setattr(load, "_take", failing)
    # More than a buffer holds is still to come.
    monkeypatch.setattr(prisma, "CHUNK_ROWS", 10)
    assert refuses(command, filled) == "no more"
    assert caplog.records == []


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_one_import_at_a_time_and_no_password_in_an_argument(command: Command, source: str, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("select pg_advisory_lock(hashtextextended('crafely.import', 0))")
        assert refuses(command, source) == "another import is at work in this database"
    assert command("import", "prisma", "--from", "postgresql://u:s3cr3t@localhost/x") == 2
    assert "every user of the machine can read a password" in command.err
    assert "s3cr3t" not in command.err
    assert "of the source" not in refuses(command, make_conninfo(source, dbname="nowhere_at_all"))


@pytest.mark.skipif(IS_BIG, reason="for the rows of an ordinary run")
def test_an_owner_that_is_no_superuser_imports(
    command: Command, server: embedded.Server, filled: str, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = conninfo_to_dict(empty_database)["dbname"]
    url = make_conninfo(empty_database, user="crafely_importer")
    reader = make_conninfo(filled, user="crafely_import_reader")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create role crafely_importer login createrole; create role crafely_import_reader login")
        connection.execute("grant crafely_admin to crafely_importer")
        connection.execute(f"alter database {name} owner to crafely_importer".encode())
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute("grant select on all tables in schema public to crafely_import_reader")
    try:
        monkeypatch.setenv("CRAFELY_DATABASE_URL", url)
        assert command("migrate", "up") == 0, command.err
        assert command("import", "prisma", "--from", reader) == 0, command.err
        same_rows(filled, empty_database)
    finally:
        for where, role in ((empty_database, "crafely_importer"), (filled, "crafely_import_reader")):
            with psycopg.connect(where, autocommit=True) as connection:
                connection.execute(f"reassign owned by {role} to current_user; drop owned by {role}".encode())
                connection.execute(f"drop role {role}".encode())
