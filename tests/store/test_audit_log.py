"""Seals over the trail: whatever is altered, removed or inserted afterwards is found, and nothing else is."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from crafely.cli.audit import Report, verify
from crafely.db.session import Database, Session
from crafely.store import audit_log
from tests.db.statements import opened


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
                if await self.unsealed() == 0:
                    return str(sealed.head)
                await asyncio.sleep(0.01)

    async def seal_some(self) -> int:
        return (await audit_log.seal(self._admin)).row_count

    async def unsealed(self) -> int:
        return (await audit_log.unsealed(self._backup)).row_count

    async def drop(self, months_kept: int) -> date | None:
        return await audit_log.drop_month(self._admin, months_kept=months_kept)

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


@pytest.fixture
async def sealed(trail: Trail) -> Trail:
    """A trail of eighteen rows under three seals or more."""
    for name in ("a", "b", "c"):
        trail.change(name)
        await trail.seal()
    return trail


# Each column of the trail, and another value for it; what is found of row 8, in the middle of a seal in the middle.
ALTERED = {
    "id": ("1000000", "removed"),
    "created_at": ("created_at + interval '1 microsecond'", "altered"),
    "actor_user_id": ("'mallory'", "altered"),
    "actor_api_key_id": ("''", "altered"),
    "actor_role": ("actor_role || ' '", "altered"),
    "request_id": ("'null'", "altered"),
    "table_name": ("'threads'", "altered"),
    "row_id": ("null", "altered"),
    "user_id": ("upper(user_id)", "altered"),
    "action": ("'delete'", "altered"),
    # Not the same as no value, although both are null in JSON.
    "old": ("'null'::jsonb", "altered"),
    "new": ('new || \'{"name": "c"}\'', "altered"),
    "transaction_id": ("'9000000000'", "removed"),
}


@pytest.mark.parametrize("column", ALTERED)
async def test_a_row_that_was_altered_is_named(sealed: Trail, column: str) -> None:
    value, change = ALTERED[column]
    if column == "id":
        sealed.superuser.execute("alter table audit_log alter column id drop identity")
    sealed.superuser.execute(SQL("update audit_log set {} = {} where id = 8").format(Identifier(column), SQL(value)))
    told = [text.partition(": ")[2] for text in await sealed.findings()]
    assert told == [*(["row 1000000 was inserted"] if column == "id" else []), f"row 8 was {change}"]


def test_each_column_of_the_trail_is_altered_here(superuser: psycopg.Connection) -> None:
    columns = superuser.execute(
        "select attname from pg_attribute where attrelid = 'audit_log'::regclass and attnum > 0 and not attisdropped"
    ).fetchall()
    assert {name for (name,) in columns} == set(ALTERED)


HARMS = {
    "a row removed": ("delete from audit_log where id = 8", ["row 8 was removed"]),
    "rows removed": ("delete from audit_log where id in (8, 9)", ["rows 8–9 were removed"]),
    "moved to another month": (
        "update audit_log set created_at = created_at - interval '1 month' where id = 8",
        ["row 8 was altered"],
    ),
    "two swapped": (
        "update audit_log a set row_id = b.row_id from audit_log b where a.id + b.id = 15 and a.id in (7, 8)",
        ["rows 7–8 were altered"],
    ),
    "a row inserted": (
        """
        insert into audit_log (id, actor_role, table_name, row_id, action, transaction_id) overriding system value
        select 500, 'postgres', 'agents', 'x', 'delete', transaction_id from audit_log where id = 8
        """,
        ["row 500 was inserted"],
    ),
    "a row inserted before all others": (
        """
        insert into audit_log (id, actor_role, table_name, row_id, action, transaction_id) overriding system value
        values (-9223372036854775808, 'postgres', 'agents', 'x', 'delete', '0')
        """,
        ["row -9223372036854775808 was inserted"],
    ),
    "a second row of an id": (
        """
        insert into audit_log (id, created_at, actor_role, table_name, row_id, action, transaction_id)
            overriding system value
        select id, created_at - interval '1 month', actor_role, table_name, row_id, action, transaction_id
        from audit_log where id = 8
        """,
        ["row 8 was altered"],
    ),
    "all rows removed": ("truncate audit_log", ["rows 1–6", "rows 7–12", "rows 13–18"]),
}


@pytest.mark.parametrize("harm", HARMS)
async def test_what_was_done_to_rows_is_told_by_their_ids(sealed: Trail, harm: str) -> None:
    first = sealed.value("select min(id) from audit_log")
    assert first == 1  # the ids below
    sealed.superuser.execute(HARMS[harm][0].encode())
    report = await sealed.verify()
    told = [one.finding.partition(": ")[2] for one in report.findings]
    if harm == "all rows removed":
        ids = sorted(id_ for one in report.findings for id_ in one.rows)
        assert ids == list(range(1, 19))
        assert all(text.endswith("removed") for text in told)
    else:
        assert told == HARMS[harm][1]


# Each column of a seal, and another value for it.
FORGED = {
    "id": "s.id + 100",
    "created_at": "s.created_at + interval '1 microsecond'",
    "kind": "'drop'",
    "system_identifier": "s.system_identifier + 1",
    "since_id": "s.since_id + 1",
    "until_id": "1000",
    "from_transaction_id": "'1'",
    "from_id": "s.from_id + 1",
    "to_transaction_id": "'9000000000'",
    "to_id": "s.to_id + 1",
    "month": "s.month - interval '1 month'",
    "row_count": "s.row_count + 1",
    "row_ids": "s.row_ids + '{[500,501)}'",
    "row_checks": "s.row_checks || '\\x00'",
    "row_digest": "sha256(s.row_digest)",
    "digest": "sha256(s.digest)",
}


@pytest.mark.parametrize("column", FORGED)
async def test_a_seal_that_was_altered_is_found(sealed: Trail, column: str) -> None:
    seal = sealed.value("select max(id) from audit_seals where kind = 'batch'")
    sealed.superuser.execute(
        SQL("update audit_seals s set {} = {} where id = {}").format(Identifier(column), SQL(FORGED[column]), seal)
    )
    findings = await sealed.findings()
    said = f"seal {seal} is not as it was made, after seal {seal - 1}"
    if column == "id":
        said = f"seals {seal}–{seal + 99} were removed"
    assert said in findings


def test_each_column_of_a_seal_is_forged_here(superuser: psycopg.Connection) -> None:
    columns = superuser.execute(
        "select attname from pg_attribute where attrelid = 'audit_seals'::regclass and attnum > 0 and not attisdropped"
    ).fetchall()
    assert {name for (name,) in columns} == set(FORGED)


async def test_a_seal_that_was_removed_is_found(sealed: Trail) -> None:
    sealed.superuser.execute("delete from audit_seals where id = 2")
    assert await sealed.findings() == ["seal 2 was removed"]
    sealed.superuser.execute("delete from audit_seals where id = 1")
    assert await sealed.findings() == ["seals 1–2 were removed"]


async def test_a_seal_that_was_inserted_is_found(sealed: Trail) -> None:
    # The last one once more, as the next: it begins where that one began.
    sealed.superuser.execute(
        "create temporary table forged as select * from audit_seals order by id desc limit 1;"
        "update forged set id = id + 1; insert into audit_seals select * from forged"
    )
    last = sealed.value("select max(id) from audit_seals")
    assert await sealed.findings() == [f"seal {last} is not as it was made, after seal {last - 1}"]


@pytest.mark.parametrize(
    "harm",
    [
        # The end: what is sealed next follows what is left.
        "delete from audit_seals where id = (select max(id) from audit_seals)",
        # All of it: the rows are sealed once more, as they are now.
        "delete from audit_log where id = 8; truncate audit_seals",
    ],
    ids=["cut", "recomputed"],
)
async def test_a_chain_that_was_made_anew_is_found_by_a_head_that_was_kept(sealed: Trail, harm: str) -> None:
    head = sealed.value("select encode(digest, 'hex') from audit_seals order by id desc limit 1")
    assert await sealed.findings(head) == []
    sealed.superuser.execute(harm.encode())
    trail_is_sealed = await sealed.seal()
    assert trail_is_sealed != head
    assert await sealed.findings() == []
    assert await sealed.findings(head) == [
        "the head that was kept is not in the chain: it was recomputed, or its end cut off"
    ]


async def test_a_transaction_that_commits_late_finds_its_place(trail: Trail, database_url: str) -> None:
    with psycopg.connect(database_url) as late:
        # It has the lower ids, and commits last.
        late.execute("insert into agents (id, name, instructions, user_id) values ('late', 'a', '', 'alice')")
        trail.change("b")
        for _ in range(3):
            await trail.seal_some()
        assert await trail.unsealed() == 6
        assert await trail.findings() == []
        late.commit()
    await trail.seal()
    report = await trail.verify()
    assert (report.rows, report.findings) == (7, [])
    # In the order of transactions, the late one's row is the first.
    assert trail.value("select row_id from audit_log order by transaction_id, id limit 1") == "late"


async def test_seals_made_among_writers_cover_each_row_once(trail: Trail, database_url: str) -> None:
    async def write(name: str) -> None:
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            for number in range(25):
                for step in range(1 + number % 3):
                    await connection.execute(
                        "insert into agents (id, name, instructions, user_id) values (%s, 'a', '', 'alice')",
                        [f"{name} {number} {step}"],
                    )
                # What follows commits before it, now and then.
                await asyncio.sleep(0.002 * (number % 4))
                await connection.commit()

    writers = asyncio.gather(*(write(name) for name in ("a", "b", "c", "d")))
    while not writers.done():
        await trail.seal_some()
        assert await trail.findings() == []
    await writers
    await trail.seal()
    report = await trail.verify()
    assert (report.rows, report.findings) == (trail.value("select count(*) from audit_log"), [])
    assert report.seals > 1


async def test_a_long_transaction_is_sealed_in_parts(trail: Trail) -> None:
    trail.superuser.execute(
        "insert into audit_log (actor_role, table_name, row_id, action)"
        " select 'x', 'agents', n, 'insert' from generate_series(1, 10050) n"
    )
    await trail.seal()
    assert trail.rows("select row_count from audit_seals order by id") == [(10000,), (50,)]
    assert (await trail.verify()).findings == []
    trail.superuser.execute("update audit_log set row_id = '' where id in (10000, 10001)")
    assert await trail.findings() == ["seal 1: row 10000 was altered", "seal 2: row 10001 was altered"]


async def test_only_one_seals_and_nobody_waits(trail: Trail, database_url: str) -> None:
    trail.change("a")
    with psycopg.connect(database_url) as other:
        other.execute("select pg_advisory_xact_lock(hashtextextended('crafely.audit_seals', 0))")
        assert await trail.seal_some() == 0
    await trail.seal()
    # A writer that has not committed holds up nobody, and a seal that has not committed holds up no writer.
    with psycopg.connect(database_url) as other:
        other.execute("select seal_audit_log()")
        trail.superuser.execute("set lock_timeout = '1s'")
        trail.change("b")


# Rows of other months: in the default partition, and in one of its own.
MONTHS_AGO = """
    insert into audit_log (actor_role, table_name, row_id, action, created_at)
    select 'postgres', 'agents', n, 'insert', date_trunc('month', now(), 'utc') - m * interval '1 month'
    from unnest(array[5, 4, 3, 2, 0]) as m cross join generate_series(1, 3) as n order by n, m desc
"""


async def test_months_that_are_no_longer_kept_are_dropped_and_the_chain_says_so(trail: Trail) -> None:
    month = trail.value("select to_char(now() at time zone 'utc' - interval '4 months', 'YYYY\"m\"MM')")
    first = trail.value("select date_trunc('month', now(), 'utc') - interval '4 months'")
    part = Identifier(f"audit_log_y{month}")
    trail.superuser.execute(
        SQL("create table {} partition of audit_log for values from ({}) to ({})").format(
            part, str(first), str(trail.value("select %s::timestamptz + interval '1 month'", first))
        )
    )
    trail.change("a")
    await trail.seal()
    trail.superuser.execute(MONTHS_AGO)
    oldest = trail.value("select id from audit_log order by created_at, id limit 1")
    # What is not sealed is not dropped.
    assert await trail.drop(2) is None
    await trail.seal()
    dropped = [await trail.drop(2) for _ in range(4)]
    ago = [
        (trail.value("select (date_trunc('month', now(), 'utc') - %s * interval '1 month')::date", m))
        for m in (5, 4, 3)
    ]
    assert dropped == [*ago, None]
    assert trail.value("select to_regclass(%s) is null", f"audit_log_y{month}")
    report = await trail.verify()
    assert (report.rows, report.findings) == (12, [])
    # Rows that came back, other months, and the word that a month was dropped are looked at as before.
    trail.superuser.execute(
        "insert into audit_log (id, actor_role, table_name, row_id, action, created_at, transaction_id)"
        " overriding system value select %s, 'postgres', 'agents', 1, 'insert', %s, transaction_id"
        " from audit_log order by id desc limit 1",
        [oldest, first],
    )
    assert [text.partition(": ")[2] for text in await trail.findings()] == [f"row {oldest} was inserted"]
    trail.superuser.execute("delete from audit_log where id = %s", [oldest])
    last = trail.value("select max(id) from audit_seals")
    trail.superuser.execute("update audit_seals set month = month - 31 where id = %s", [last])
    assert f"seal {last} is not as it was made, after seal {last - 1}" in await trail.findings()


async def test_the_last_three_months_cannot_be_dropped(trail: Trail) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        await trail.drop(1)


# As if what there is had come from a cluster of another name, whose transactions were far ahead.
ELSEWHERE = """
    update audit_log set transaction_id = (transaction_id::text::bigint + 1000000000)::text::xid8
        where id > coalesce((select max(upper(row_ids)) from audit_seals), 0) - 1;
    select set_config('tests.append', pg_get_functiondef('append_audit_seal'::regproc), false);
    do $$ begin
        execute replace(current_setting('tests.append'), '(select system_identifier from pg_control_system())', '7');
    end $$;
    select seal_audit_batch((select s from audit_seals s order by id desc limit 1), '9000000000', 9);
    do $$ begin execute current_setting('tests.append'); end $$;
"""


async def test_a_trail_goes_on_in_another_cluster(trail: Trail) -> None:
    trail.change("a")
    trail.change("b")
    # Rows 1 to 8 were sealed over there; the others were not yet, and one of them had the lower transaction.
    trail.superuser.execute(ELSEWHERE)
    trail.superuser.execute("update audit_log set transaction_id = '1000000001' where id = 9")
    assert await trail.unsealed() == 3
    await trail.seal()
    assert trail.rows("select kind from audit_seals order by id")[-1] == ("restart",)
    trail.change("c")
    await trail.seal()
    report = await trail.verify()
    assert (report.rows, report.findings) == (18, [])
    # What follows is of this cluster, until the next one.
    assert trail.value("select count(distinct system_identifier) from audit_seals") == 2
    for harm, told in [
        ("delete from audit_log where id = 8", "row 8 was removed"),
        ("update audit_log set row_id = '' where id = 10", "row 10 was altered"),
        ("update audit_log set row_id = '' where id = 15", "row 15 was altered"),
        ("update audit_log set transaction_id = '5000000000' where id = 12", "row 12 was inserted"),
    ]:
        trail.superuser.execute(harm.encode())
        assert told in [text.partition(": ")[2] for text in await trail.findings()]


async def test_a_trail_that_was_never_sealed_comes_from_another_cluster(trail: Trail) -> None:
    trail.change("a")
    trail.superuser.execute("update audit_log set transaction_id = '9000000000'")
    await trail.seal()
    trail.change("b")
    await trail.seal()
    report = await trail.verify()
    assert (report.rows, report.findings) == (12, [])
