"""What can happen to a PostgreSQL, and to workers: each a context manager, and over when its block is."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg

from tests.cli.conftest import processes, until
from tests.torture.scene import Scene

Connection = psycopg.Connection[tuple[object, ...]]

OTHERS = """
    select pg_terminate_backend(pid)
    from pg_stat_activity
    where backend_type = 'client backend'
        and pid <> pg_backend_pid()
        and application_name like 'crafely%'
"""


@contextmanager
def looking(scene: Scene) -> Iterator[Connection]:
    """A superuser's connection that commits each statement."""
    with psycopg.connect(scene.url, autocommit=True, connect_timeout=10) as connection:
        yield connection


@contextmanager
def killed(scene: Scene) -> Iterator[None]:
    """PostgreSQL is killed -9, and somebody starts it again."""
    os.kill(scene.postmaster, signal.SIGKILL)
    try:
        yield
    finally:
        scene.start()


@contextmanager
def frozen(scene: Scene) -> Iterator[None]:
    """PostgreSQL, all of it, does nothing."""
    stopped: list[int] = []

    def stop(pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    try:
        # The postmaster first: then there are no new ones.
        stop(scene.postmaster)
        for pid in children(scene.postmaster):
            stop(pid)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def children(parent: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(process.name))
    return found


def terminate_all(scene: Scene) -> None:
    """Every connection of the server is ended by a DBA."""
    with looking(scene) as connection:
        connection.execute(OTHERS)


@contextmanager
def used_up(scene: Scene) -> Iterator[None]:
    """Others use all connections, and ours have been ended: there is none for anybody."""
    taken: list[Connection] = []
    try:
        with ExitStack() as halted:
            # Or our pools would be quicker than we are.
            for worker in scene.workers():
                halted.enter_context(stopped(worker))
            with looking(scene) as connection:
                until(lambda: connection.execute(OTHERS).rowcount == 0, "ours to be gone")
            take(scene, taken)
        yield
    finally:
        for one in taken:
            one.close()


def take(scene: Scene, taken: list[Connection]) -> None:
    with suppress(psycopg.OperationalError):
        while True:
            taken.append(psycopg.connect(scene.url, connect_timeout=10, application_name="greedy"))


@contextmanager
def read_only(scene: Scene) -> Iterator[None]:
    """No transaction may write, as on a standby."""
    switch(scene, "on")
    try:
        yield
    finally:
        switch(scene, "off")


def switch(scene: Scene, value: str) -> None:
    with psycopg.connect(scene.url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        connection.execute(f"alter system set default_transaction_read_only = {value}".encode())
        connection.execute("select pg_reload_conf()")
    # It is heard by the postmaster first, and new connections say when.
    until(lambda: setting(scene) == value, "the setting to be heard")


def setting(scene: Scene) -> str:
    with looking(scene) as connection:
        [(value,)] = connection.execute("show default_transaction_read_only").fetchall()
    return str(value)


@contextmanager
def locked(scene: Scene, *tables: str) -> Iterator[None]:
    """Somebody holds tables for himself."""
    with psycopg.connect(scene.url, connect_timeout=10) as connection:
        for table in tables:
            connection.execute(f"lock table {table} in access exclusive mode".encode())
        yield
        connection.rollback()


@contextmanager
def slow(scene: Scene, table: str, seconds: float) -> Iterator[None]:
    """Every insert into a table takes its time."""
    with looking(scene) as connection:
        connection.execute(
            f"create function dawdle() returns trigger language plpgsql as"
            f" $$ begin perform pg_sleep({seconds}); return new; end $$".encode()
        )
        connection.execute(
            f"create trigger dawdle before insert on {table} for each row execute function dawdle()".encode()
        )
    try:
        yield
    finally:
        with looking(scene) as connection:
            connection.execute("drop function dawdle cascade")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill_worker(scene: Scene) -> int:
    """kill -9 of one worker. Gives its pid."""
    victim = scene.workers()[0]
    os.kill(victim, signal.SIGKILL)
    return victim


def replaced(scene: Scene, victim: int, count: int) -> None:
    """Waits until another one has taken a worker's place."""
    try:
        until(lambda: victim not in (now := scene.workers()) and len(now) == count, "another worker")
    except AssertionError as error:
        here = {pid: Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in processes(scene.serving.folder)}
        error.add_note(f"without {victim}, {count} of {scene.workers()}; {here}; said: {scene.serving.err[-3000:]}")
        raise


def wait(seconds: float) -> None:
    """For faults that last so long."""
    time.sleep(seconds)
