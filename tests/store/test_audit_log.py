"""Seals over the trail: whatever is altered, removed or inserted afterwards is found, and nothing else is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from crafely.cli.audit import Report, verify
from crafely.db.session import Database, Session
from crafely.store import audit_log
from tests.db.statements import opened

# Some changes: an insert and an update of each of these agents.
CHANGES = """
    insert into agents (id, name, instructions, user_id) select %s || n, 'a', '', 'alice' from generate_series(1, 3) n;
"""


class Trail:
    """A trail to seal, to harm and to verify."""

    def __init__(self, database: Database, superuser: psycopg.Connection) -> None:
        self._admin = database.session("crafely_admin")
        self._backup: Session = database.session("crafely_backup")
        self.superuser = superuser

    def change(self, name: str) -> list[int]:
        """Six changes, of two transactions; gives the ids of their rows."""
        before = self.value("select coalesce(max(id), 0) from audit_log")
        self.superuser.execute(
            "insert into agents (id, name, instructions, user_id)"
            " select %s || n, 'a', '', 'alice' from generate_series(1, 3) n",
            [name],
        )
        self.superuser.execute("update agents set name = 'b' where starts_with(id, %s)", [name])
        return [int(id_) for (id_,) in self.rows("select id from audit_log where id > %s order by id", before)]

    async def seal(self) -> str:
        """Seals everything, which may have to wait for a transaction somewhere on the server; gives the head."""
        async with asyncio.timeout(30):
            while True:
                sealed = await audit_log.seal(self._admin)
                if (await audit_log.unsealed(self._backup)).row_count == 0:
                    return str(sealed.head)
                await asyncio.sleep(0.01)

    async def verify(self, head: str | None = None) -> Report:
        return await verify(self._backup, head)

    async def findings(self, head: str | None = None) -> list[str]:
        return [one.finding for one in (await self.verify(head)).findings]

    def rows(self, query: str, *values: object) -> list[Any]:
        return self.superuser.execute(query.encode(), values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        return self.rows(query, *values)[0][0]


@pytest.fixture
async def trail(database_url: str, superuser: psycopg.Connection) -> AsyncIterator[Trail]:
    async with opened(database_url, roles=["crafely_admin", "crafely_backup"]) as database:
        yield Trail(database, superuser)


async def test_a_trail_that_nobody_touched_is_as_it_was_sealed(trail: Trail) -> None:
    assert await trail.verify() == Report(0, 0, None, audit_log.Unsealed(0, None), [])
    trail.change("a")
    assert (await trail.verify()).unsealed.row_count == 6
    head = await trail.seal()
    trail.change("b")
    assert await trail.seal() != head
    report = await trail.verify(head)
    assert (report.rows, report.findings, report.unsealed.row_count) == (12, [], 0)
    assert report.seals == trail.value("select count(*) from audit_seals") >= 2
