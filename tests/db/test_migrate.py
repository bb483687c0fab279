"""Migrations on a real server: what is refused, what a crash leaves, who may run at once."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from crafely.db import migrate
from crafely.db.migrate import MigrationError

TABLE = "-- One table.\ncreate table {0} (id int primary key);\n"
DROP = "-- The way back.\ndrop table {0};\n"
INDEX = "-- For the search.\n-- transactional: false\ncreate index concurrently a_id_idx on a (id);\n"
ASLEEP = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
UP = "import sys, pathlib, crafely.db.migrate as m; print(m.up(sys.argv[1], pathlib.Path(sys.argv[2])))"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two good migrations, which make tables a and b."""
    write(tmp_path, "0001.a", TABLE.format("a"), DROP.format("a"))
    write(tmp_path, "0002.b", TABLE.format("b"), DROP.format("b"))
    return tmp_path


def write(folder: Path, name: str, up: str, down: str = "-- Back.\nselect 1;") -> None:
    (folder / f"{name}.sql").write_text(up)
    (folder / f"{name}.rollback.sql").write_text(down)


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def tables(url: str) -> set[str]:
    found = ask(url, "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'")
    return {name for (name,) in found if not name.startswith("_yoyo")}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.05)


def start_up(url: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", UP, url, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def states(url: str, folder: Path) -> list[tuple[str, str]]:
    return [(migration.id, migration.state) for migration in migrate.status(url, folder)]


def test_up_and_down_and_up_again(empty_database: str, files: Path) -> None:
    assert states(empty_database, files) == [("0001.a", "pending"), ("0002.b", "pending")]
    told: list[str] = []
    assert migrate.up(empty_database, files, on_progress=told.append) == ["0001.a", "0002.b"]
    assert told == ["applying 0001.a", "applying 0002.b"]
    assert tables(empty_database) == {"a", "b"}
    assert migrate.up(empty_database, files) == []

    first, second = migrate.status(empty_database, files)
    assert (first.state, second.state) == ("applied", "applied")
    assert first.applied_at
    assert second.applied_at
    assert first.applied_at <= second.applied_at

    assert migrate.down(empty_database, files) == ["0002.b"]
    assert migrate.up(empty_database, files) == ["0002.b"]
    assert migrate.down(empty_database, files, steps=None) == ["0002.b", "0001.a"]
    assert tables(empty_database) == set()
    assert migrate.down(empty_database, files) == []
    assert migrate.up(empty_database, files, to="0001.a") == ["0001.a"]

    log = ask(empty_database, "select migration_id, operation from _yoyo_log order by created_at_utc")
    assert log[:3] == [("0001.a", "mark"), ("0002.b", "mark"), ("0002.b", "unmark")]


def test_down_and_up_refuse_steps_and_ids_that_are_none(empty_database: str, files: Path) -> None:
    with pytest.raises(MigrationError, match=r"steps: 0 is not"):
        migrate.down(empty_database, files, steps=0)
    with pytest.raises(MigrationError, match=r"0003\.c: the folder has no such"):
        migrate.up(empty_database, files, to="0003.c")
    assert tables(empty_database) == set()


def test_pending_is_what_the_rows_lack(empty_database: str, files: Path) -> None:
    expected = migrate.expected(files)
    assert migrate.pending([], expected) == ["0001.a", "0002.b"]
    migrate.up(empty_database, files)
    rows = ask(empty_database, "select migration_id, migration_hash from _yoyo_migration")
    assert migrate.pending([(name, checksum) for name, checksum in rows], expected) == []
    assert migrate.pending([("0001.a", expected["0001.a"]), ("0002.b", "0" * 64)], expected) == ["0002.b"]


def test_status_only_reads(empty_database: str, files: Path) -> None:
    relations = "select oid, relname from pg_class order by oid"
    before = ask(empty_database, relations)
    read_only = make_conninfo(empty_database, options="-c default_transaction_read_only=on")
    states(read_only, files)
    assert ask(empty_database, relations) == before
    migrate.up(empty_database, files)
    assert states(read_only, files) == [("0001.a", "applied"), ("0002.b", "applied")]
    with pytest.raises(MigrationError, match="read-only transaction"):
        migrate.down(read_only, files)
    # And it could not write if it tried.
    with (
        migrate._connect(empty_database, migrate._READER) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        connection.execute("create table c ()")


def test_a_bad_file_stops_everything_before_anything_runs(empty_database: str, files: Path) -> None:
    write(files, "0003.c", TABLE.format("c"), "-- Nothing.\n")
    for run in migrate.up, migrate.down, migrate.status:
        with pytest.raises(MigrationError, match=r"^0003\.c\.rollback\.sql: holds no statement$"):
            run(empty_database, files)
    assert ask(empty_database, "select to_regclass('a'), to_regclass('_yoyo_migration')") == [(None, None)]


# --- What the server gets ---------------------------------------------------------------------------------------------


def test_the_server_gets_the_text_as_it_is(empty_database: str, tmp_path: Path) -> None:
    up = r"""-- Everything that a splitter or a formatter could stumble on; a semicolon, a quote ' and a $$ too.
/* nested /* ; commit; */ ' */
create table a (id int, "odd;name" text default E'it\'s; {0} %s');
comment on table a is '100% :name {id} %(x)s $1 ''q''; -- no comment';
create function f() returns int language plpgsql as $$ begin if true then return 1; end if; end; $$;
create function g(x int) returns int language sql return x + 1;
create function h() returns int language sql
begin atomic
    select case when true then 1 end;
    select 2;
end;
do $body$ begin perform $$a;b$$; execute 'create table b (id int)'; end $body$;
select f(), 5 % 3, 'x' :: text;
create table c$d$ (id int)"""
    down = "-- All of it.\ndrop function f(); drop function g(int); drop function h(); drop table a, b, c$d$"
    write(tmp_path, "0001.all", up, down)
    migrate.up(empty_database, tmp_path)
    assert ask(empty_database, "select obj_description('a'::regclass), f(), g(1), h()") == [
        ("100% :name {id} %(x)s $1 'q'; -- no comment", 1, 2, 2)
    ]
    assert tables(empty_database) == {"a", "b", "c$d$"}
    migrate.down(empty_database, tmp_path)
    assert tables(empty_database) == set()


def test_what_a_file_sets_ends_with_the_file(empty_database: str, tmp_path: Path) -> None:
    up = "-- A dump sets such things.\ncreate schema s; set search_path = s; set role pg_monitor;"
    write(tmp_path, "0001.set", up, "-- Back.\ndrop schema s;")
    write(tmp_path, "0002.a", TABLE.format("a"), DROP.format("a"))
    assert migrate.up(empty_database, tmp_path) == ["0001.set", "0002.a"]
    assert tables(empty_database) == {"a"}


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("create table c (id nonsense);", r'^0003\.c\.sql:4: type "nonsense" does not exist$'),
        ("create table b ();", r'^0003\.c\.sql:4: relation "b" already exists$'),
        ("create index concurrently on ü (id);", r"^0003\.c\.sql:4: CREATE INDEX CONCURRENTLY cannot run inside"),
        ("insert into ü values (1); insert into ü values (1);", r"^0003\.c\.sql:4: duplicate key value"),
        ("insert into ü values ('secret');", r"^0003\.c\.sql:4: invalid input syntax"),
    ],
)
def test_a_failing_statement_names_file_and_line_and_leaves_nothing(
    empty_database: str, files: Path, statement: str, message: str
) -> None:
    write(
        files, "0003.c", f"-- Why: ü.\n\ncreate table ü (id int primary key);\n{statement}\n", "-- Back.\ndrop table ü;"
    )
    with pytest.raises(MigrationError, match=message):
        migrate.up(empty_database, files)
    assert tables(empty_database) == {"a", "b"}
    assert states(empty_database, files)[-1] == ("0003.c", "pending")


def test_a_failing_rollback_leaves_everything(empty_database: str, files: Path) -> None:
    write(files, "0003.c", TABLE.format("c"), "-- Back.\ndrop table c;\ndrop table c;\n")
    migrate.up(empty_database, files)
    with pytest.raises(MigrationError, match=r'^0003\.c\.rollback\.sql:3: table "c" does not exist'):
        migrate.down(empty_database, files, steps=None)
    assert tables(empty_database) == {"a", "b", "c"}
    assert states(empty_database, files)[-1] == ("0003.c", "applied")


def test_a_migration_that_cannot_be_marked_is_not_applied(empty_database: str, files: Path) -> None:
    write(files, "0003.c", TABLE.format("c") + "drop table _yoyo_log;", DROP.format("c"))
    with pytest.raises(MigrationError, match=r"^0003\.c\.sql: not recorded as run: relation .*_yoyo_log"):
        migrate.up(empty_database, files)
    assert tables(empty_database) == {"a", "b"}
    assert len(ask(empty_database, "select from _yoyo_log")) == 2


def test_a_lost_connection_leaves_nothing_and_says_so(empty_database: str, files: Path) -> None:
    write(files, "0003.c", TABLE.format("c") + "select pg_terminate_backend(pg_backend_pid());", DROP.format("c"))
    with pytest.raises(MigrationError, match=r"^0003\.c\.sql:3: terminating connection"):
        migrate.up(empty_database, files)
    assert tables(empty_database) == {"a", "b"}


# --- Outside a transaction --------------------------------------------------------------------------------------------


def test_outside_a_transaction(empty_database: str, files: Path) -> None:
    write(files, "0003.index", INDEX, "-- Back.\ndrop index concurrently a_id_idx;")
    assert migrate.up(empty_database, files)[-1] == "0003.index"
    assert ask(empty_database, "select indisvalid from pg_index where indexrelid = 'a_id_idx'::regclass") == [(True,)]
    assert migrate.down(empty_database, files) == ["0003.index"]
    assert ask(empty_database, "select to_regclass('a_id_idx')") == [(None,)]


def test_outside_a_transaction_a_failure_warns_of_what_is_left(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    write(files, "0003.rows", "-- Rows.\nalter table a add x int; insert into a values (1, 1), (2, 1);")
    write(files, "0004.index", INDEX.replace("index", "unique index", 1).replace("(id)", "(x)"))
    with pytest.raises(
        MigrationError, match=r"^0004\.index\.sql:3: could not create unique index .* it left a_id_idx invalid: mend"
    ):
        migrate.up(empty_database, files)
    assert states(empty_database, files)[2:] == [("0003.rows", "applied"), ("0004.index", "pending")]
    assert ask(empty_database, "select indisvalid from pg_index where indexrelid = 'a_id_idx'::regclass") == [(False,)]


# --- History that is not the folder's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0001.a.sql", "0001.a.rollback.sql"])
def test_edited_history_is_refused(empty_database: str, files: Path, name: str) -> None:
    migrate.up(empty_database, files, to="0001.a")
    (files / name).write_text((files / name).read_text() + "-- One more word.\n")
    assert states(empty_database, files) == [("0001.a", "edited"), ("0002.b", "pending")]
    for run in migrate.up, migrate.down:
        with pytest.raises(MigrationError, match=r"^0001\.a\.sql: it or its rollback was changed"):
            run(empty_database, files)
    assert tables(empty_database) == {"a"}


def test_a_missing_file_is_refused(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    for path in files.glob("0002.*"):
        path.unlink()
    assert states(empty_database, files) == [("0001.a", "applied"), ("0002.b", "missing")]
    for run in migrate.up, migrate.down:
        with pytest.raises(MigrationError, match=r"^0002\.b: applied here, but the folder lacks it"):
            run(empty_database, files)
    assert tables(empty_database) == {"a", "b"}


def test_a_migration_before_an_applied_one_is_refused(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    with psycopg.connect(empty_database) as connection:
        connection.execute("delete from _yoyo_migration where migration_id = '0001.a'")
    for run in migrate.up, migrate.down:
        with pytest.raises(MigrationError, match=r"^0001\.a\.sql: comes before 0002\.b, which is applied"):
            run(empty_database, files)


def test_reset_wants_the_embedded_database_or_its_name(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    name = psycopg.conninfo.conninfo_to_dict(empty_database)["dbname"]
    with psycopg.connect(empty_database) as connection:
        connection.execute("insert into a values (1)")
    for wrong in None, "", "postgres", f"{name} ":
        with pytest.raises(MigrationError, match=f"all data of the database '{name}'"):
            migrate.reset(empty_database, files, embedded=False, force=wrong)
    assert ask(empty_database, "select id from a") == [(1,)]
    migrate.reset(empty_database, files, embedded=False, force=str(name))
    assert ask(empty_database, "select id from a") == []
    with psycopg.connect(empty_database) as connection:
        connection.execute("insert into a values (1)")
    migrate.reset(empty_database, files, embedded=True)
    assert ask(empty_database, "select id from a") == []


def test_a_refused_reset_writes_nothing(empty_database: str, files: Path) -> None:
    with pytest.raises(MigrationError, match="all data"):
        migrate.reset(empty_database, files, embedded=False)
    assert ask(empty_database, "select to_regclass('_yoyo_migration')") == [(None,)]


# --- More than one at once, and the ends that nobody plans ------------------------------------------------------------


def test_two_at_once_are_harmless(empty_database: str, files: Path) -> None:
    write(files, "0003.index", INDEX, "-- Back.\ndrop index concurrently a_id_idx;")
    write(files, "0004.slow", "-- Long enough to meet.\nselect pg_sleep(0.5);")
    runners = [start_up(empty_database, files) for _ in range(2)]
    outcomes = [runner.communicate(timeout=60) for runner in runners]
    assert sorted(out for out, _ in outcomes) == ["['0001.a', '0002.b', '0003.index', '0004.slow']\n", "[]\n"]
    assert [err for _, err in outcomes] == ["", ""]
    assert ask(empty_database, "select count(*) from _yoyo_log") == [(4,)]


def test_kill_in_the_middle_leaves_nothing_of_it(empty_database: str, files: Path) -> None:
    write(files, "0003.c", TABLE.format("c") + "select pg_sleep(600)", DROP.format("c"))
    runner = start_up(empty_database, files)
    until(lambda: ask(empty_database, ASLEEP))
    runner.send_signal(signal.SIGKILL)
    runner.communicate(timeout=10)

    # The server notices that nobody waits for the answer; ten minutes would be too long for `until`.
    until(lambda: not ask(empty_database, ASLEEP))
    assert tables(empty_database) == {"a", "b"}
    write(files, "0003.c", TABLE.format("c"), DROP.format("c"))
    assert migrate.up(empty_database, files) == ["0003.c"]
    assert tables(empty_database) == {"a", "b", "c"}


def test_a_lock_that_is_held_too_long_names_its_holder(
    empty_database: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(files, "0003.c", "-- Why.\nselect pg_sleep(600);", DROP.format("c"))
    holder = start_up(empty_database, files)
    until(lambda: ask(empty_database, ASLEEP))
    ((pid,),) = ask(empty_database, ASLEEP)
    monkeypatch.setattr(migrate, "LOCK_WAIT", 0.3)
    told: list[str] = []
    with pytest.raises(MigrationError, match=rf"^server process {pid} has held the migration lock for 0\.3 s"):
        migrate.up(empty_database, files, on_progress=told.append)
    assert told == [f"waiting for server process {pid}, which is migrating"]
    assert states(empty_database, files)[-1] == ("0003.c", "pending")

    ask(empty_database, f"select pg_terminate_backend({pid})")
    _, err = holder.communicate(timeout=30)
    assert "terminating connection" in err


def test_a_busy_table_is_not_waited_for_and_the_run_can_be_repeated(empty_database: str, files: Path) -> None:
    migrate.up(empty_database, files)
    write(files, "0003.c", "-- Why.\ncreate table c ();\nalter table a add x int;\n", "-- Back.\ndrop table c;")
    impatient = make_conninfo(empty_database, options="-c lock_timeout=100ms")
    with psycopg.connect(empty_database) as busy:
        busy.execute("select * from a")
        with pytest.raises(MigrationError, match=r"^0003\.c\.sql.*lock timeout.*safe to run again"):
            migrate.up(impatient, files)
        assert tables(empty_database) == {"a", "b"}
    assert migrate.up(impatient, files) == ["0003.c"]


# Takes a, waits until somebody waits for it or is done, and takes b.
CROSSING = """-- Why.
lock table a in access exclusive mode;
do $$ begin
    while not exists (select from pg_locks where relation = 'a'::regclass and not granted)
        and not exists (select from done)
    loop
        perform pg_sleep(0.01);
    end loop;
end $$;
lock table b in access exclusive mode;
create table c (id int primary key);
"""
TAKEN = "select from pg_locks where relation = 'a'::regclass and mode = 'AccessExclusiveLock' and granted"


@pytest.mark.parametrize("tries", [1, 3])
def test_a_deadlock_is_tried_again(
    empty_database: str, files: Path, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    monkeypatch.setattr(migrate, "TRIES", tries)
    migrate.up(empty_database, files)
    with psycopg.connect(empty_database) as connection:
        connection.execute("create table done ()")
    write(files, "0003.c", CROSSING, DROP.format("c"))
    quick = make_conninfo(empty_database, options="-c deadlock_timeout=10ms -c lock_timeout=30s")
    told: list[str] = []

    with ThreadPoolExecutor() as pool, psycopg.connect(empty_database) as other:
        # The migration is the one that finds the deadlock, and so the one that loses.
        other.execute("set deadlock_timeout = '1h'; lock table b in access exclusive mode")
        run = pool.submit(migrate.up, quick, files, on_progress=told.append)
        until(lambda: ask(empty_database, TAKEN))
        other.execute("lock table a in access exclusive mode; insert into done default values")
        other.commit()
        if tries == 1:
            with pytest.raises(MigrationError, match=r"^0003\.c\.sql:10: deadlock detected: .* safe to run again$"):
                run.result(timeout=30)
        else:
            assert run.result(timeout=30) == ["0003.c"]
            lost = "0003.c.sql: a deadlock, in which another session had its way: once more"
            assert told == ["applying 0003.c", lost]
    assert tables(empty_database) == {"a", "b", "done"} | ({"c"} if tries > 1 else set())
    assert states(empty_database, files)[-1] == ("0003.c", "applied" if tries > 1 else "pending")


def test_a_lock_is_waited_for_five_seconds_unless_the_dba_says_otherwise(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = "-- Why.\ncreate table shown as select current_setting('lock_timeout') as patience;"
    write(tmp_path, "0001.show", show, DROP.format("shown"))

    def patience(url: str) -> object:
        migrate.reset(url, tmp_path, embedded=True)
        return ask(empty_database, "select patience from shown")[0][0]

    assert patience(empty_database) == "5s"
    assert patience(make_conninfo(empty_database, options="-c lock_timeout=7s")) == "7s"
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=9s")
    assert patience(empty_database) == "9s"


# --- Wrong addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/x", "connection failed"),
        ("postgresql://me:hunter2@[::1/x", "URL cannot be read"),
        ("me hunter2", "URL cannot be read"),
        ("postgresql://127.0.0.1/x?pasword=hunter2", "URL cannot be read"),
    ],
)
def test_a_wrong_address_gets_one_line_without_the_password(files: Path, url: str, message: str) -> None:
    for run in migrate.up, migrate.status:
        with pytest.raises(MigrationError, match=message) as caught:
            run(url, files)
        assert "\n" not in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_a_constraint_that_fails_at_the_commit_leaves_nothing(empty_database: str, files: Path) -> None:
    up = """-- Why.
create table c (id int references a deferrable initially deferred);
insert into c values (7);
"""
    write(files, "0003.c", up, DROP.format("c"))
    with pytest.raises(MigrationError, match=r"^0003\.c\.sql: not recorded as run: .* violates foreign key"):
        migrate.up(empty_database, files)
    assert tables(empty_database) == {"a", "b"}
    assert states(empty_database, files)[-1] == ("0003.c", "pending")
