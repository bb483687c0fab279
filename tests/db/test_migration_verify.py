"""``migrate verify``: each rollback that is not one is found, in its file and line; locks are those that were held."""

from pathlib import Path

import psycopg
import pytest

from crafely.db import embedded, migrate, migration_verify
from crafely.db.migrate import MigrationError
from crafely.db.migration_verify import Report, verify
from crafely.db.traffic import traffic

TWICE = """do $$ begin
    if to_regclass('a_new') is null then create index a_new on a (id);
    else create index a_newer on a (note); end if;
end $$;"""
MUST = """create table c (id bigint);
alter table a add column must text;
update a set must = '';
alter table a alter column must set not null;"""
# The second migration of a folder whose first makes tables a and b: there, back, and what is found. Lines are those of
# the file as it is written here, below a header of one line.
MUTANTS = {
    "too much is dropped": (
        "alter table a add column size bigint;",
        "alter table a drop column size;\nalter table a drop column note;",
        "migrations/0002.c.rollback.sql:3: rollback: takes column a.note away, which was there before",
    ),
    "a default is other": (
        "alter table a alter column note set default 'new';",
        "-- Not as it was.\nalter table a alter column note drop default;",
        "migrations/0002.c.rollback.sql:3: rollback: leaves column a.note: is «text not null», should be «text default",
    ),
    "a policy is other": (
        "drop policy own on b;",
        "create policy own on b using (false);",
        "migrations/0002.c.rollback.sql:2: rollback: leaves policy own on b: is «to public using (false)»",
    ),
    "it comes out different": (
        TWICE,
        "select 1;",
        "migrations/0002.c.sql:4: repeat: after down and up again, index a_newer on a: should not be there",
    ),
    "it does not run": (
        "create table c (id bigint);\ncreate index on d (id);",
        "drop table c;",
        'migrations/0002.c.sql:3: runs: relation "d" does not exist',
    ),
    "the way back does not run": (
        "create table c (id bigint);",
        "drop table c;\ndrop table d;",
        'migrations/0002.c.rollback.sql:3: runs: table "d" does not exist',
    ),
    "who writes now is refused": (
        MUST,
        "drop table c;\nalter table a drop column must;",
        "migrations/0002.c.sql:3: traffic: `insert into a` worked before it and is refused after it",
    ),
}


def folder(place: Path, there: str, back: str) -> Path:
    first = """-- Two tables.
create table a (id uuid primary key default gen_random_uuid(), note text not null default 'old', user_id text not null);
create table b (id bigint generated always as identity, a_id uuid not null references a (id));
create policy own on b using (true);
"""
    for name, up, down in ("0001.ab", first, "drop table b, a;"), ("0002.c", f"-- Why.\n{there}\n", f"{back}\n"):
        (place / f"{name}.sql").write_text(up)
        (place / f"{name}.rollback.sql").write_text(f"-- Back.\n{down}\n")
    return place


def tried(server: embedded.Server, tmp_path: Path, there: str, back: str) -> Report:
    # Roles stay with the server.
    return verify(server.url, folder(tmp_path, there, back), only="0002.c")


@pytest.mark.parametrize(("there", "back", "said"), MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_way_back_is_found(
    server: embedded.Server, template: str, tmp_path: Path, there: str, back: str, said: str
) -> None:
    found = [str(finding) for finding in tried(server, tmp_path, there, back).findings]
    assert [line for line in found if line.startswith(said)], found


def test_whatever_is_left_behind_is_named(server: embedded.Server, template: str, tmp_path: Path) -> None:
    there = """create index a_note_idx on a (note);
alter table b add column size bigint;
grant select on b to crafely_app;
create function f() returns int language sql return 1;
create schema s;
alter table a enable row level security;
alter table b add column gone bigint;"""
    found = [str(one) for one in tried(server, tmp_path, there, "alter table b drop column gone;").findings]
    for line, what in enumerate(
        (
            "index a_note_idx on a",
            "column b.size",
            "grant on b to crafely_app",
            "function f()",
            "schema s",
            "row level security of a",
        ),
        2,
    ):
        place = "2" if what.endswith((" b.size", " b to crafely_app")) else "1"
        start = f"migrations/0002.c.rollback.sql:{place}: rollback: leaves {what} behind, which migrations/0002.c.sql:"
        (said,) = [one for one in found if one.startswith(start)]
        made = int(said.removeprefix(start).partition(" ")[0])
        # A grant and a switch have no name but their table's, which stands in an earlier line too.
        assert made == line or (made < line and what.startswith(("grant", "row level")))


def test_a_good_migration_has_no_finding_and_its_locks_are_told(server: embedded.Server, tmp_path: Path) -> None:
    there = "alter table a add column size bigint;\ncreate table c (a_id uuid references a (id));"
    report = tried(server, tmp_path, there, "drop table c;\nalter table a drop column size;")
    assert report.findings == []
    (one,) = report.migrations
    assert (one.id, one.rewrites) == ("0002.c", [])
    assert [(held.table, held.mode) for held in one.locks] == [("a", "AccessExclusiveLock")]
    assert one.locks[0].ms > 0
    assert one.statements > 0


def test_a_lock_is_seen_however_short_it_is_held(
    server: embedded.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because the migration is looked at before it commits; nobody looks at another time here."""
    monkeypatch.setattr(migration_verify, "LOOK", 600.0)
    (one,) = tried(server, tmp_path, "create table c (a_id uuid references a (id));", "drop table c;").migrations
    assert [(held.table, held.mode) for held in one.locks] == [("a", "ShareRowExclusiveLock")]


def test_a_table_that_is_written_anew_is_told(server: embedded.Server, tmp_path: Path) -> None:
    there = "alter table a add column key uuid not null default gen_random_uuid();"
    report = tried(server, tmp_path, there, "alter table a drop column key;")
    assert [one.rewrites for one in report.migrations] == [["a"]]


def test_others_wait_for_a_lock_that_is_held(server: embedded.Server, tmp_path: Path) -> None:
    there = "lock table a in access exclusive mode;\nselect pg_sleep(0.3);\ncreate table c (id bigint);"
    (one,) = tried(server, tmp_path, there, "drop table c;").migrations
    assert one.locks[0].ms >= 200
    assert max(one.read_wait_ms, one.write_wait_ms) >= 200


def test_outside_a_transaction_locks_are_seen_too(server: embedded.Server, tmp_path: Path) -> None:
    place = folder(tmp_path, "create index concurrently d_slow_idx on d (slow(place));", "drop index d_slow_idx;")
    (place / "0002.c.sql").write_text("-- transactional: false\n" + (place / "0002.c.sql").read_text())
    # One row that takes its time, so that nobody can overlook it; traffic knows no value of the type, and makes none.
    slow = """create function slow(inet) returns inet immutable language plpgsql as $$
begin perform pg_sleep(0.2); return $1; end $$;
create table d (place inet not null);
insert into d (place) values ('10.0.0.1');
"""
    (place / "0001.ab.sql").write_text((place / "0001.ab.sql").read_text() + slow)
    report = verify(server.url, place, only="0002.c")
    assert report.findings == []
    assert [(held.table, held.mode) for held in report.migrations[0].locks] == [("d", "ShareUpdateExclusiveLock")]


def test_an_unknown_id_is_refused_and_nothing_is_left(server: embedded.Server, tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"^0009\.z: the folder has no such migration"):
        verify(server.url, folder(tmp_path, "select 1;", "select 1;"), only="0009.z")
    with psycopg.connect(server.url) as connection:
        left = connection.execute("select datname from pg_database where datname like 'crafely_scratch%'").fetchall()
    assert left == []


def test_every_shipped_migration_goes_there_and_back_under_traffic(server: embedded.Server) -> None:
    told: list[tuple[str, int, int]] = []
    report = verify(server.url, on_progress=lambda *progress: told.append(progress))
    assert [str(finding) for finding in report.findings] == []
    assert len(report.migrations) == len(migrate.expected())
    assert told[-1] == ("", len(report.migrations), len(report.migrations))
    # A reader waits only for those that give a table a column, a check or a policy, which is done in a moment.
    held = {(one.id[:4], lock.table) for one in report.migrations for lock in one.locks if "AccessE" in lock.mode}
    assert held <= {
        ("0025", "agents"),
        ("0025", "threads"),
        ("0026", "packages"),
        ("0026", "user_subscriptions"),
        ("0027", "audit_log"),
        ("0028", "audit_log"),
        ("0032", "idempotency_keys"),
        ("0035", "usage"),
    }
    assert [one.id for one in report.migrations if one.rewrites] == []


def test_traffic_reads_and_writes_rows_of_every_table(database_url: str) -> None:
    with traffic(database_url) as waits:
        pass
    assert waits.refused == {}
    with psycopg.connect(database_url) as connection:
        for table in "api_keys", "agents", "threads", "packages", "user_subscriptions", "usage", "audit_log":
            assert connection.execute(f"table {table} limit 1".encode()).fetchall(), table
