"""``crafely serve`` on a new machine: what it prints works when pasted, and what is wrong gets one line."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.cli.target import Target
from tests.cli.conftest import PROGRAM, Refused, Serving, crafely, processes, shell

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"  # never to be printed
NO_URL = "CRAFELY_DATABASE_URL: expected a URL such as postgresql://user@host/name"


def test_the_first_start_prints_an_admin_key_once_and_answers(served: Serving) -> None:
    assert re.fullmatch(r"crf_live_\w{16}_\w{38}", served.key)
    assert served.out.count("crf_live_") == 1
    assert "crf_live_" not in served.err
    status, me = served.get("/v1/me", served.key)
    assert (status, me["userId"], me["permissions"]) == (200, "admin", ["*", "admin"])
    docs = served.line(r"^  Docs      http://[^/]+(/\S+)$")
    assert served.get(docs)[0] == 200


def test_it_says_what_one_waits_for(served: Serving) -> None:
    steps = served.err.splitlines()
    assert steps[0] == "starting PostgreSQL in .crafely/"
    assert "applying 0001.roles" in steps


def test_the_psql_line_works_when_pasted(served: Serving) -> None:
    line = served.line(r"^  Database  (.*)$")
    done = shell(served.folder, f"{line} -X -At -c 'select current_database()'")
    assert (done.stdout, done.stderr) == ("crafely\n", "")


def test_the_psql_line_of_another_database_shows_no_password() -> None:
    url = f"postgresql://me:{SECRET}@db.internal:6432/crafely?sslmode=require&sslpassword={SECRET}"
    assert (
        Target(url, embedded=False).pasteable
        == "psql 'user=me dbname=crafely host=db.internal port=6432 sslmode=require'"
    )


def test_the_key_and_the_curl_line_work_when_pasted(served: Serving) -> None:
    done = shell(served.folder, served.line(r"^  (KEY=crf_live_.*)$"), served.line(r"^  Try       (.*)$"))
    assert '"userId":"admin"' in done.stdout, done


def test_the_login_that_readme_has_a_dba_make_serves_and_makes_keys(
    folder: Path, superuser: psycopg.Connection, database_url: str
) -> None:
    readme = (ROOT / "README.md").read_text()
    (statements,) = re.findall(r"\n(create role crafely_server [^`]*)```", readme)
    superuser.execute(statements.replace("'…'", f"'{SECRET}'").encode())
    try:
        parts = {**conninfo_to_dict(database_url), "user": "crafely_server", "password": SECRET}
        url = make_conninfo(**parts)  # type: ignore[arg-type]  # each part is a text
        made = crafely(folder, "keys", "create", "--admin", CRAFELY_DATABASE_URL=url)
        assert made.returncode == 0, made.stderr
        serving = Serving(folder, CRAFELY_DATABASE_URL=url).ready()
        try:
            assert serving.get("/v1/me", made.stdout.strip())[1]["userId"] == "admin"
            assert serving.get("/v1/monitor/activity", made.stdout.strip())[0] == 200
        finally:
            serving.stop()
    finally:
        superuser.execute("drop role crafely_server")


def test_the_line_for_another_key_works_when_pasted(served: Serving) -> None:
    done = shell(served.folder, served.line(r"^  New key   (.*)$"), served.line(r"^  Try       (.*)$"))
    assert '"userId":"admin"' in done.stdout, done


def test_the_next_start_prints_no_key_and_has_the_data(copied: tuple[Path, str]) -> None:
    folder, key = copied
    serving = Serving(folder).ready()
    assert "crf_live_" not in serving.out
    assert "applying" not in serving.err
    (agent,) = serving.get("/v1/agents", key)[1]["data"]
    assert agent["name"] == "kept"
    serving.stop()


def test_another_data_folder_is_part_of_the_line_for_another_key(copied: tuple[Path, str]) -> None:
    folder, _ = copied
    (folder / ".crafely").rename(folder / "my data")
    serving = Serving(folder, CRAFELY_DATA_DIR="my data").ready()
    done = shell(folder, serving.line(r"^  New key   (.*)$"), serving.line(r"^  Try       (.*)$"))
    assert '"userId":"admin"' in done.stdout, done
    assert not (folder / ".crafely").exists()
    serving.stop()


@pytest.mark.parametrize("same_port", [False, True])
def test_a_second_server_on_the_folder_says_that_one_is_running(served: Serving, same_port: bool) -> None:
    port = served.address.rpartition(":")[2] if same_port else "0"
    done = crafely(served.folder, "serve", "--port", port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"crafely: crafely is already running here: {served.address} (pid {served.process.pid}); "
        "stop it with Ctrl-C there, or choose another CRAFELY_DATA_DIR\n"
    )


def test_a_taken_port_is_one_line_and_nothing_is_started(folder: Path, refused: Refused) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        line = refused("serve", "--port", str(port))
    advice = "choose another with --port or CRAFELY_PORT (0 takes a free one)"
    assert line == f"crafely: cannot listen on 127.0.0.1:{port}: that port is taken; {advice}"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CRAFELY_PORT": "abc"}, "CRAFELY_PORT: "),
        ({"CRAFELY_PORT": "70000"}, "CRAFELY_PORT: "),
        ({"CRAFELY_WORKERS": "0"}, "CRAFELY_WORKERS: "),
        ({"CRAFELY_X": SECRET}, "CRAFELY_X: no such setting; "),
        ({"CRAFELY_HOST": "nowhere.invalid"}, "cannot listen on nowhere.invalid:8000: "),
        ({"CRAFELY_HOST": "a..b"}, "cannot listen on 'a..b': that is no host name"),
        ({"CRAFELY_POSTGRES_BIN": "/nowhere", "CRAFELY_PORT": "0"}, "/nowhere holds no postgres: set CRAFELY_POSTGRES"),
    ],
)
def test_a_bad_setting_is_one_line(folder: Path, variables: dict[str, str], said: str) -> None:
    done = crafely(folder, "serve", **variables)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"crafely: {said}")
    assert len(done.stderr.replace("starting PostgreSQL in .crafely/\n", "").splitlines()) == 1
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    ("command", "url", "said"),
    [
        ("serve --port 0", f"postgresql://me:{SECRET}@nowhere.invalid/crafely", "nowhere.invalid"),
        ("serve --port 0", f"postgresql://me:{SECRET}@127.0.0.1:1/crafely", "refused"),
        ("serve --port 0", f"postgresql://me:{SECRET}@127.0.0.1:1,127.0.0.1:2/crafely", "target_session_attrs=primary"),
        ("serve --port 0", f"mysql://me:{SECRET}@127.0.0.1/crafely", NO_URL),
        ("serve --port 0", f"me {SECRET}", NO_URL),
        ("keys list", f"postgresql://me:{SECRET}@127.0.0.1:1/crafely", "refused"),
        ("keys list", f"mysql://me:{SECRET}@127.0.0.1/crafely", NO_URL),
        ("migrate status", f"mysql://me:{SECRET}@127.0.0.1/crafely", NO_URL),
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line(refused: Refused, command: str, url: str, said: str) -> None:
    line = refused(*command.split(), CRAFELY_DATABASE_URL=url)
    assert said in line
    assert SECRET not in line


def test_a_database_that_does_not_exist_is_one_line(refused: Refused, empty_database: str) -> None:
    url = make_conninfo(**{**conninfo_to_dict(empty_database), "dbname": "no_such_database"})  # type: ignore[arg-type] # its own values
    assert 'database "no_such_database" does not exist' in refused("serve", "--port", "0", CRAFELY_DATABASE_URL=url)


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "create"), ("keys", "list")])
def test_a_database_without_the_schema_says_what_to_run(
    refused: Refused, empty_database: str, command: tuple[str, ...]
) -> None:
    line = refused(*command, CRAFELY_DATABASE_URL=empty_database)
    assert re.fullmatch(r"crafely: the database lacks \d+ migrations \(0001\.roles …\): run crafely migrate up", line)


def test_a_migrated_database_by_url_is_served_and_no_key_is_made(
    folder: Path, database_url: str, superuser: psycopg.Connection
) -> None:
    serving = Serving(folder, CRAFELY_DATABASE_URL=database_url).ready()
    assert "crf_live_" not in serving.out
    assert superuser.execute("select count(*) from api_keys").fetchone() == (0,)
    assert not (folder / ".crafely").exists()
    serving.stop()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_login_without_the_roles_is_one_line(
    refused: Refused, database_url: str, superuser: psycopg.Connection, workers: str
) -> None:
    name = f"stranger_{os.getpid()}"
    superuser.execute(f"create role {name} login".encode())
    superuser.execute(f"grant select on _yoyo_migration to {name}".encode())
    try:
        url = make_conninfo(**{**conninfo_to_dict(database_url), "user": name})  # type: ignore[arg-type] # its own values
        line = refused("serve", "--port", "0", "--workers", workers, CRAFELY_DATABASE_URL=url)
    finally:
        superuser.execute(f"drop owned by {name}; drop role {name}".encode())
    assert line.startswith("crafely: cannot use the database at ")


def test_a_damaged_data_folder_is_one_line(copied: tuple[Path, str]) -> None:
    folder, _ = copied
    (folder / ".crafely" / "postgres" / "global" / "pg_control").write_bytes(b"")
    done = crafely(folder, "serve", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    steps, line = done.stderr.splitlines()
    assert steps == "starting PostgreSQL in .crafely/"
    assert line.startswith(f"crafely: {folder}/.crafely/postgres is damaged (")
    assert processes(folder) == {}


# Too small for initdb's first files, for its last, and for the first database.
@pytest.fixture(params=["8m", "19m", "40m"])
def small_disk(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={request.param},mode=755", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["/bin/umount", disk], check=True)


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    done = crafely(small_disk, "serve", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    assert line == f"crafely: {small_disk}/.crafely: the disk is full; free some space and start again"
    assert processes(small_disk) == {}


def test_more_connections_than_the_system_has_files_for_are_refused_at_the_start(folder: Path) -> None:
    done = shell(folder, "ulimit -n 500", f"{PROGRAM} serve --port 0 || echo refused")
    assert done.stdout == "refused\n"
    assert re.fullmatch(
        r"crafely: CRAFELY_MAX_CONNECTIONS: the system allows a process 500 open files, .*\n", done.stderr
    )


def test_it_has_files_for_all_its_connections(folder: Path, database_url: str) -> None:
    few = ("/bin/bash", "-c", 'ulimit -Sn 300; exec "$0" serve --port 0', PROGRAM)
    serving = Serving(folder, command=few, CRAFELY_DATABASE_URL=database_url).ready()
    limits = Path(f"/proc/{serving.process.pid}/limits").read_text()
    assert int(re.findall(r"Max open files +(\d+)", limits)[0]) >= 1200
    serving.stop()
