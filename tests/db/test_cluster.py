"""What is wrong with a data folder, in one line each: real damage, real full disks."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crafely.db import embedded
from crafely.db.embedded import EmbeddedError, running, serving

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
Execute = Callable[[str, str], list[tuple[object, ...]]]
Refused = Callable[..., str]


@contextmanager
def holding(file: Path, content: bytes | None) -> Iterator[None]:
    """The file holds content, or is gone for None, and is as it was afterwards."""
    kept = file.with_name("kept")
    shutil.copy2(file, kept)
    shutil.chown(kept, file.stat().st_uid, file.stat().st_gid)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    yield
    kept.replace(file)


def test_data_of_another_version(shared: Path, refused: Refused) -> None:
    with holding(shared / "postgres" / "PG_VERSION", b"15\n"):
        line = refused(shared)
    assert "holds data of PostgreSQL 15 and the server is 18: set CRAFELY_POSTGRES_BIN" in line


@pytest.mark.parametrize("content", [b"", b"garbage\n", b"\xff\x00", None])
def test_a_version_file_that_says_nothing(shared: Path, content: bytes | None, refused: Refused) -> None:
    with holding(shared / "postgres" / "PG_VERSION", content):
        line = refused(shared)
    assert "is damaged (PG_VERSION is missing or holds no version): restore a backup" in line


@pytest.mark.parametrize("content", [bytes(8192), b"\x5a" * 8192, b"short", b"", None])
def test_a_damaged_control_file(shared: Path, content: bytes | None, refused: Refused) -> None:
    with holding(shared / "postgres" / "global" / "pg_control", content):
        line = refused(shared)
    assert f"{shared / 'postgres'} is damaged (" in line
    assert "Permission denied" not in line
    assert line.endswith("restore a backup, or move the folder away to start with an empty one")


def test_a_setting_that_the_server_refuses(shared: Path, refused: Refused) -> None:
    line = refused(shared, work_memory="it's \\ 5")
    assert 'PostgreSQL did not start: unrecognized configuration parameter "work_memory"' in line
    line = refused(shared, shared_preload_libraries="no_such_library")
    assert 'did not start: could not access file "no_such_library": No such file or directory; see ' in line


def test_a_file_where_a_folder_must_be(empty: Path, refused: Refused) -> None:
    empty.touch()
    assert "this is a file where a folder must be; choose another CRAFELY_DATA_DIR" in refused(empty)
    assert "this is a file where a folder must be; choose another CRAFELY_DATA_DIR" in refused(empty / "below")
    with pytest.raises(EmbeddedError, match="this is a file"), serving(empty, "http://x"):
        pass


def test_programs_that_are_not_there(empty: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"holds no postgres: set CRAFELY_POSTGRES_BIN"):
        embedded._find(empty, empty)
    broken = empty / "bin"
    broken.mkdir()
    for name in ("postgres", "initdb", "pg_ctl", "createdb"):
        (broken / name).write_text("#!/bin/sh\necho no libssl here >&2; exit 127\n")
        (broken / name).chmod(0o755)
    with (
        pytest.raises(EmbeddedError, match=r"does not run on this machine: no libssl here"),
        running(empty, postgres_bin=broken),
    ):
        pass
    (broken / "postgres").chmod(0o600)
    with (
        pytest.raises(EmbeddedError, match=r"cannot be run by .* \(Permission denied\)"),
        running(empty, postgres_bin=broken),
    ):
        pass


def test_a_virtual_environment_below_a_closed_folder(empty: Path, options: dict[str, str], execute: Execute) -> None:
    private = empty.parent / "private"
    private.mkdir()
    wheel = embedded._programs(None).parents[1]
    for folder in (wheel, wheel.with_name(wheel.name + ".libs")):
        shutil.copytree(folder, private / folder.name, ignore=shutil.ignore_patterns("include", "doc", "*.a"))
    private.chmod(0o700)
    programs = private / wheel.name / "pginstall" / "bin"
    with running(private / "data", postgres_bin=programs, options=options) as server:
        assert execute(server.url, "select 1") == [(1,)]
    # Others may pass through, and still neither list nor read.
    assert private.stat().st_mode & 0o777 == (0o701 if ROOT else 0o700)


@pytest.fixture
def small_disk(empty: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    empty.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(empty)]
    done = subprocess.run(mount, check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.decode()}")
    yield empty
    subprocess.run(["/bin/umount", str(empty)], check=True)


@as_root
@pytest.mark.parametrize("small_disk", ["10m"], indirect=True)
def test_a_disk_that_fills_during_initdb(small_disk: Path, refused: Refused) -> None:
    home = small_disk / "data"
    assert refused(home) == f"{home}: the disk is full; free some space and start again"
    assert not list(home.glob("postgres*"))


@as_root
@pytest.mark.parametrize("small_disk", ["120m"], indirect=True)
def test_a_disk_that_is_full_at_the_start(
    shared: Path, small_disk: Path, options: dict[str, str], execute: Execute, refused: Refused
) -> None:
    home = small_disk / "data"
    subprocess.run(["/bin/cp", "-a", "--sparse=always", shared, home], check=True)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free)
    assert "the disk is full; free some space and start again" in refused(home)
    ballast.unlink()
    with running(home, options=options) as server:
        assert execute(server.url, "select value from kept") == [("before",)]
