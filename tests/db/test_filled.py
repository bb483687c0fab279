"""The scratch database: made once, made anew when something has changed, and believed only when it is whole."""

import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from crafely.db import embedded, filled, migrate


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, server: embedded.Server) -> Iterator[psycopg.Connection]:
    """Without rows: what is filled is shown by test_contract.py."""
    monkeypatch.setattr(filled, "_files", list)
    with psycopg.connect(server.url, autocommit=True) as connection:
        yield connection
        for name in databases(connection):
            connection.execute(f"drop database {name} with (force)".encode())


def databases(connection: psycopg.Connection) -> list[str]:
    found = connection.execute("select datname from pg_database where starts_with(datname, 'crafely_check_')")
    return [name for (name,) in found.fetchall()]


def until(condition: Callable[[], bool]) -> None:
    """Waits for the server to notice that somebody has left."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("never happened")


def mark(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table mark ()")


def is_marked(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute("select to_regclass('mark') is not null").fetchone() == (True,)


def test_it_is_kept(quick: psycopg.Connection, server: embedded.Server) -> None:
    told: list[float] = []
    first = filled.ensure(server.url, lambda _, part: told.append(part))
    mark(first)

    assert filled.ensure(server.url, lambda *_: pytest.fail("made again")) == first
    assert is_marked(first)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 1)


def test_it_is_made_anew_when_what_it_follows_from_has_changed(
    quick: psycopg.Connection, server: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filled.ensure(server.url)
    with psycopg.connect(first, autocommit=True) as user:
        monkeypatch.setattr(migrate, "expected", lambda: {"0001.other": "checksum"})
        second = filled.ensure(server.url)

        # One that somebody uses is left alone …
        assert second != first
        assert len(databases(quick)) == 2
        assert user.execute("select 1").fetchone() == (1,)

    name = conninfo_to_dict(first)["dbname"]
    until(lambda: quick.execute("select from pg_stat_activity where datname = %s", [name]).rowcount == 0)
    monkeypatch.setattr(migrate, "expected", lambda: {"0001.another": "checksum"})
    filled.ensure(server.url)

    # … and goes when nobody does.
    assert len(databases(quick)) == 1


def test_one_that_was_left_half_full_is_made_anew(
    quick: psycopg.Connection, server: embedded.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, _: object) -> None:
        mark(url)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(filled, "fill", fail)
        with pytest.raises(KeyboardInterrupt):
            filled.ensure(server.url)

    url = filled.ensure(server.url)
    assert not is_marked(url)
