"""Point-in-time recovery, as the README has it: its configuration, its settings and its commands, run as they stand."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from crafely.cli.audit import verify
from crafely.db import embedded, migrate
from crafely.db.cluster import PORT, SUPERUSER, Cluster
from crafely.store import audit_log
from tests.cli.conftest import new_folder, until
from tests.db.statements import opened

README = (Path(__file__).parents[2] / "README.md").read_text()
SECONDS = 120
# What a distribution brings together fits together. The wheel's server is newer than most pgBackRests know.
PROGRAMS = [path for version in (15, 16, 17, 18) if (path := Path(f"/usr/lib/postgresql/{version}/bin")).is_dir()]

pytestmark = [
    pytest.mark.skipif(shutil.which("pgbackrest") is None, reason="pgBackRest is not installed"),
    pytest.mark.skipif(not PROGRAMS, reason="no PostgreSQL of the distribution's, which its pgBackRest is made for"),
]


def block(kind: str) -> str:
    """The only block of this kind in the README's section."""
    section = README.partition("### Point in time")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)
    return str(found)


class Backed:
    """An embedded server that pgBackRest backs up, all in one folder."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "data"
        self.cluster: Cluster = embedded._find(self.home, PROGRAMS[0])
        self.conf = folder / "pgbackrest.conf"
        text = block("ini").replace("/var/lib/postgresql/15/main", str(self.cluster.pgdata))
        text = text.replace("/var/lib/pgbackrest", str(self._own(folder / "repository")))
        # Where the packages of a distribution have their own folders, and a server its usual socket.
        for name in ("log", "lock", "spool"):
            text = text.replace("[global]\n", f"[global]\n{name}-path={self._own(folder / name)}\n")
        self.conf.write_text(text)
        self.conf.chmod(0o644)

    def _own(self, folder: Path) -> Path:
        folder.mkdir()
        if self.cluster.owner:
            os.chown(folder, *self.cluster.owner)
        return folder

    def options(self) -> dict[str, str]:
        """The README's settings of the server."""
        settings = dict(re.findall(r"^(\w+) = '?(.*?)'?$", block("conf"), re.MULTILINE))
        assert settings.keys() == {"archive_mode", "archive_command"}
        settings["archive_command"] = settings["archive_command"].replace(
            "pgbackrest ", f"pgbackrest --config={self.conf} "
        )
        return {**settings, "fsync": "off"}

    def run(self, command: str) -> None:
        """Runs one of the README's commands, as the server's user."""
        words = command.replace("sudo -u postgres pgbackrest ", "")
        assert words != command
        # The socket's folder may change with each start.
        here = f"--config={self.conf}"
        if " restore" not in words:
            here += f" --pg1-socket-path={self.cluster.socket} --pg1-port={PORT} --pg1-user={SUPERUSER}"
        owner = self.cluster.owner
        as_user = {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}
        done = subprocess.run(
            ["/bin/sh", "-c", f"pgbackrest {here} {words}"],
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
            **as_user,  # type: ignore[call-overload]  # a dictionary of three of its options
        )
        assert done.returncode == 0, done


@pytest.fixture
def backed() -> Iterator[Backed]:
    with new_folder() as folder:
        yield Backed(folder)


async def test_a_database_goes_back_to_a_moment(backed: Backed) -> None:
    create, back_up, check, restore = block("sh").strip().splitlines()
    with embedded.running(backed.home, postgres_bin=PROGRAMS[0], options=backed.options()) as server:
        migrate.up(server.url)
        backed.run(create)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("insert into agents (name, instructions, user_id) values ('first', 'i', 'alice')")
            backed.run(back_up)
            backed.run(check)
            # It knows the end of a backup in whole seconds, and looks for one before that of the moment.
            connection.execute("select pg_sleep(1.1)")
            connection.execute("insert into agents (name, instructions, user_id) values ('second', 'i', 'alice')")
            async with opened(server.url, roles=["crafely_admin"]) as database:
                assert (await audit_log.seal(database.session("crafely_admin"))).row_count == 2
            (moment,) = connection.execute("select clock_timestamp()::text").fetchone() or ("",)
            # The mistake.
            connection.execute("delete from agents")
            connection.execute("select pg_switch_wal()")
            (last,) = connection.execute("select pg_walfile_name(pg_current_wal_lsn() - 1)").fetchone() or ("",)
            until(
                lambda: (
                    connection.execute("select last_archived_wal >= %s from pg_stat_archiver", [last]).fetchone()
                    == (True,)
                ),
                "the log to be archived",
            )
    # And the disk.
    shutil.rmtree(backed.cluster.pgdata)
    backed._own(backed.cluster.pgdata).chmod(0o700)
    assert "2026-11-28 13:00:00+00" in restore
    backed.run(restore.replace("2026-11-28 13:00:00+00", moment))

    with embedded.running(backed.home, postgres_bin=PROGRAMS[0], options=backed.options()) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            until(
                lambda: connection.execute("select not pg_is_in_recovery()").fetchone() == (True,),
                "the end of recovery",
            )
            assert connection.execute("select name from agents order by created_at").fetchall() == [
                ("first",),
                ("second",),
            ]
            connection.execute("insert into agents (name, instructions, user_id) values ('third', 'i', 'alice')")
        async with opened(server.url, roles=["crafely_admin", "crafely_backup"]) as database:
            await audit_log.seal(database.session("crafely_admin"))
            report = await verify(database.session("crafely_backup"))
        assert (report.findings, report.rows) == ([], 3)
