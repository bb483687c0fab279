"""The primary and the standbys that other tests use."""

from collections.abc import Iterator

import psycopg
import pytest

from tests import standby
from tests.cli.conftest import new_folder, until
from tests.standby import Node

COUNT = "select count(*) from kept"


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    with new_folder() as folder, standby.servers(folder) as nodes:
        yield nodes


def test_a_standby_follows_is_promoted_and_the_old_primary_follows_it(nodes: list[Node]) -> None:
    a, b = nodes
    with a.looking() as connection:
        connection.execute("create table kept (value text)")
        connection.execute("insert into kept values ('before')")
    b.caught_up(a)
    assert b.ask(COUNT) == 1

    a.synchronous(b)
    b.pause()
    with a.looking() as connection:
        connection.execute("insert into kept values ('stored there, not applied')")
    assert b.ask(COUNT) == 1
    b.resume()
    b.caught_up(a)
    assert b.ask(COUNT) == 2

    with a.frozen(), pytest.raises(psycopg.OperationalError, match="timeout"):
        psycopg.connect(a.url, connect_timeout=2)
    a.synchronous()
    a.kill()
    b.promote()
    with psycopg.connect(standby.url(nodes, target_session_attrs="read-write"), autocommit=True) as connection:
        connection.execute("insert into kept values ('after')")
    a.rejoin(b)
    a.caught_up(b)
    assert (a.ask(COUNT), a.ask("select pg_is_in_recovery()")) == (3, True)
    assert b.ask("select count(*) from pg_stat_replication") == 1
    a.stop()
    until(lambda: b.ask("select count(*) from pg_stat_replication") == 0, "the standby to be gone")
