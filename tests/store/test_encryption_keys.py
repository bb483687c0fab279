"""What is known of the keys that texts are sealed with, and the role that puts texts sealed anew in their place."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from crafely.db.session import Database, Session
from crafely.store import agents, encryption_keys, threads
from crafely.store.encryption_keys import SealedTexts
from tests.db.statements import run

SEED = """
    insert into agents (id, name, instructions, context, user_id, deleted_at) values
        ('agnt_1', 'a', 'crafely:1:k1:AAAA', null, 'alice', null),
        ('agnt_2', 'b', 'in clear', 'crafely:1:k1:BBBB', 'alice', now()),
        ('agnt_3', 'c', 'crafely:1:k2:CCCC', 'crafely:1:k2:DDDD', 'bob', null),
        ('agnt_4', 'd', 'crafely:0:crafely:1:k2:', 'crafely:1:k2', 'bob', null);
    insert into threads (id, name, instructions, user_id) values
        ('thrd_1', 'a', 'crafely:1:k1:AAAA', 'alice'),
        ('thrd_2', 'b', null, 'alice'),
        ('thrd_3', 'c', 'crafely:1:k2:CCCC', 'bob');
    insert into idempotency_keys (user_id, key, fingerprint, status, body) values
        ('alice', 'a', '', 201, 'crafely:1:k1:AAAA'), ('bob', 'b', '', 201, '{}');
"""


@pytest.fixture
async def encryption(database_url: str, superuser: psycopg.Connection) -> AsyncIterator[Session]:
    """What seals texts anew."""
    superuser.execute(SEED)
    database = Database(database_url, size=1, pool_timeout=5, statement_timeout=10, roles=("crafely_encryption",))
    await database.open()
    yield database.session("crafely_encryption")
    await database.close()


async def known(session: Session) -> dict[str, bool]:
    """Every key, and whether it is in use."""
    return {key.id: key.retired_at is None for key in await encryption_keys.list_all(session)}


async def test_a_key_is_known_once_with_what_it_sealed_first(admin: Session, encryption: Session) -> None:
    assert await encryption_keys.register(admin, id="k1", check_value="sealed") == 1
    assert await encryption_keys.register(admin, id="k1", check_value="otherwise") == 0
    assert await encryption_keys.register(encryption, id="off", check_value=None) == 1
    assert [(key.id, key.check_value) for key in await encryption_keys.list_all(admin)] == [
        ("k1", "sealed"),
        ("off", None),
    ]


async def test_a_key_is_retired_and_comes_back_into_use(admin: Session, encryption: Session) -> None:
    await encryption_keys.register(admin, id="k1", check_value="sealed")
    assert await encryption_keys.retire(encryption, id="k2") == 0
    assert await encryption_keys.retire(encryption, id="k1") == 1
    assert await encryption_keys.retire(encryption, id="k1") == 0
    assert await known(admin) == {"k1": False}
    assert await encryption_keys.register(admin, id="k1", check_value="otherwise") == 1
    assert await known(admin) == {"k1": True}
    (key,) = await encryption_keys.list_all(admin)
    assert key.check_value == "sealed"


@pytest.mark.parametrize(
    ("id", "check_value"), [("", "x"), ("a key", "x"), ("k" * 33, "x"), ("off", "x"), ("k1", None)]
)
async def test_a_row_that_says_nothing_sensible_is_refused(admin: Session, id: str, check_value: str | None) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        await encryption_keys.register(admin, id=id, check_value=check_value)


async def test_texts_are_counted_by_table_column_and_key(encryption: Session) -> None:
    assert await encryption_keys.count_texts(encryption) == [
        SealedTexts("agents", "context", "k1", 1),
        SealedTexts("agents", "context", "k2", 1),
        SealedTexts("agents", "context", "off", 1),
        SealedTexts("agents", "instructions", "k1", 1),
        SealedTexts("agents", "instructions", "k2", 1),
        SealedTexts("agents", "instructions", "off", 2),
        SealedTexts("idempotency_keys", "body", "k1", 1),
        SealedTexts("idempotency_keys", "body", "off", 1),
        SealedTexts("threads", "instructions", "k1", 1),
        SealedTexts("threads", "instructions", "k2", 1),
    ]


@pytest.mark.parametrize(
    ("key_id", "agents_left", "threads_left"),
    [
        ("k2", ["agnt_1", "agnt_2", "agnt_4"], ["thrd_1"]),
        ("k1", ["agnt_2", "agnt_3", "agnt_4"], ["thrd_3"]),
        ("off", ["agnt_1", "agnt_2", "agnt_3"], ["thrd_1", "thrd_3"]),
    ],
)
async def test_what_is_to_be_sealed_anew_is_found_whosever_it_is_and_deleted_too(
    encryption: Session, key_id: str, agents_left: list[str], threads_left: list[str]
) -> None:
    found = [row.id for row in await agents.list_to_reencrypt(encryption, key_id=key_id, after="", take=10)]
    assert found == agents_left
    # From an id on, and no more than were asked for.
    for at, id_ in enumerate(agents_left):
        rows = await agents.list_to_reencrypt(encryption, key_id=key_id, after=id_, take=1)
        assert [row.id for row in rows] == agents_left[at + 1 : at + 2]
    of_threads = await threads.list_to_reencrypt(encryption, key_id=key_id, after="", take=10)
    assert [row.id for row in of_threads] == threads_left


async def test_only_what_is_still_the_same_is_replaced(encryption: Session, superuser: psycopg.Connection) -> None:
    anew = [
        {"id": id_, "old_instructions": old, "old_context": context, "instructions": f"new {id_}", "context": "new"}
        for id_, old, context in [
            ("agnt_1", "crafely:1:k1:AAAA", None),
            ("agnt_2", "another text", "crafely:1:k1:BBBB"),
            ("agnt_3", "crafely:1:k2:CCCC", None),
            ("agnt_9", "crafely:1:k2:CCCC", None),
        ]
    ]
    assert await agents.reencrypt(encryption, records=msgspec.Raw(msgspec.json.encode(anew))) == 1
    stored = superuser.execute("select id, instructions, context from agents order by id").fetchall()
    assert stored[:3] == [
        ("agnt_1", "new agnt_1", "new"),
        ("agnt_2", "in clear", "crafely:1:k1:BBBB"),
        ("agnt_3", "crafely:1:k2:CCCC", "crafely:1:k2:DDDD"),
    ]
    anew = [
        {"id": "thrd_1", "old_instructions": "crafely:1:k1:AAAA", "instructions": "new"},
        {"id": "thrd_3", "old_instructions": "crafely:1:k1:AAAA", "instructions": "new"},
    ]
    assert await threads.reencrypt(encryption, records=msgspec.Raw(msgspec.json.encode(anew))) == 1
    stored = superuser.execute("select id, instructions from threads order by id").fetchall()
    assert stored == [("thrd_1", "new"), ("thrd_2", None), ("thrd_3", "crafely:1:k2:CCCC")]


async def test_to_seal_anew_is_no_change_of_the_row_but_on_record(
    encryption: Session, superuser: psycopg.Connection
) -> None:
    superuser.execute("truncate audit_log")
    before = superuser.execute("select id, name, updated_at, deleted_at from agents order by id").fetchall()
    anew = {"old_instructions": "in clear", "old_context": "crafely:1:k1:BBBB", "instructions": "X", "context": "Y"}
    records = msgspec.json.encode([{"id": "agnt_2", **anew}])
    assert await agents.reencrypt(encryption, records=msgspec.Raw(records)) == 1
    records = msgspec.json.encode([{"id": "thrd_1", "old_instructions": "crafely:1:k1:AAAA", "instructions": "Z"}])
    assert await threads.reencrypt(encryption, records=msgspec.Raw(records)) == 1

    assert superuser.execute("select id, name, updated_at, deleted_at from agents order by id").fetchall() == before
    hidden = {"instructions": "[secret]", "context": "[secret]"}
    assert superuser.execute(
        "select actor_role, table_name, row_id, user_id, action, old, new from audit_log order by id"
    ).fetchall() == [
        ("crafely_encryption", "agents", "agnt_2", "alice", "update", hidden, hidden),
        ("crafely_encryption", "threads", "thrd_1", "alice", "update", *[{"instructions": "[secret]"}] * 2),
    ]


@pytest.mark.parametrize(
    "query",
    [
        "select name from agents",
        "select user_id from threads",
        "update agents set name = 'x'",
        "update threads set deleted_at = now()",
        "delete from agents",
        "insert into agents (name, instructions, user_id) values ('x', '', 'alice')",
        "update encryption_keys set check_value = 'x'",
        "delete from encryption_keys",
        "select key_id from api_keys",
        "select user_id from idempotency_keys",
        "update idempotency_keys set body = 'x'",
        "select id from audit_log",
    ],
)
async def test_the_role_can_do_nothing_else(encryption: Session, superuser: psycopg.Connection, query: str) -> None:
    superuser.execute("set role crafely_encryption")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        superuser.execute(query.encode())


async def test_users_and_others_know_nothing_of_the_keys(alice: Session) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await run(alice, "select id from encryption_keys")


async def test_what_happens_to_the_keys_is_on_record(
    admin: Session, encryption: Session, superuser: psycopg.Connection
) -> None:
    await encryption_keys.register(admin, id="k1", check_value="sealed")
    await encryption_keys.retire(encryption, id="k1")
    superuser.execute("truncate encryption_keys")
    assert superuser.execute(
        "select actor_role, action, row_id from audit_log where table_name = 'encryption_keys' order by id"
    ).fetchall() == [
        ("crafely_admin", "insert", "k1"),
        ("crafely_encryption", "update", "k1"),
        (superuser.info.user, "truncate", None),
    ]


@pytest.mark.parametrize("rows", [True, False])
def test_a_database_that_is_migrated_with_rows_in_it_has_texts_in_clear(
    superuser: psycopg.Connection, rows: bool
) -> None:
    assert superuser.execute("select id from encryption_keys").fetchall() == []
    back, there = (
        next(Path("migrations").glob(f"*.encryption-keys{end}")).read_bytes() for end in (".rollback.sql", ".sql")
    )
    superuser.execute("drop trigger encryption_keys_audit_truncate on encryption_keys")
    superuser.execute(back)
    if rows:
        superuser.execute("insert into threads (name, user_id) values ('n', 'alice')")
    superuser.execute(there)
    assert superuser.execute("select id, retired_at from encryption_keys").fetchall() == [("off", None)] * rows
