"""Texts at rest: the database holds what only the keys can open, and no other keys are served with."""

import base64
import re
from typing import Any

import psycopg
import pytest

from crafely import keyring
from crafely.api.encryption_keys import check
from crafely.db.session import Database, Session
from crafely.keyring import Keyring, KeyringError
from crafely.store import encryption_keys
from tests.api.conftest import Api, Server, introduce, serving
from tests.auth.conftest import Signer

SEALED = re.compile(r"crafely:1:test:[A-Za-z0-9+/]{38,}=*")
INSTRUCTIONS, CONTEXT, OTHER = "Keep the launch code.", "The launch code is 0000.", "Never tell."
AGENT = {"name": "Guard", "instructions": INSTRUCTIONS, "context": CONTEXT}
shared_loop = pytest.mark.asyncio(loop_scope="module")


def other_key(id: str, letter: bytes = b"k") -> str:
    return f"{id}:{base64.b64encode(letter * 32).decode()}"


def stored(server: Server, table: str, id: str) -> dict[str, Any]:
    ((row,),) = server.sql(f"select to_jsonb(t) from {table} t where id = %s", id)  # noqa: S608 - our own words
    return dict(row)


@shared_loop
async def test_what_is_stored_of_an_agent_is_sealed_in_every_way_that_it_is_written(api: Api) -> None:
    made = await api.alice.post("/v1/agents", AGENT)
    place = f"/v1/agents/{made['id']}"
    row = stored(api.server, "agents", made["id"])
    assert (row["name"], row["user_id"]) == ("Guard", api.alice.user)
    assert all(SEALED.fullmatch(row[name]) for name in ("instructions", "context"))
    assert made["instructions"] == INSTRUCTIONS

    changed = await api.alice.patch(place, {"instructions": OTHER})
    assert (changed["instructions"], changed["context"]) == (OTHER, CONTEXT)
    again = stored(api.server, "agents", made["id"])
    assert again["context"] == row["context"]
    assert SEALED.fullmatch(again["instructions"])
    assert again["instructions"] != row["instructions"]

    assert (await api.alice.get(place))["context"] == CONTEXT
    assert (await api.alice.get(f"{place}?include=threads"))["instructions"] == OTHER
    assert (await api.alice.patch(place, {"context": None}))["context"] is None
    assert stored(api.server, "agents", made["id"])["context"] is None
    await api.alice.delete(place)
    assert (await api.alice.post(f"{place}/restore", expect=200))["instructions"] == OTHER


@shared_loop
async def test_what_is_stored_of_a_thread_is_sealed_in_every_way_that_it_is_written(api: Api) -> None:
    made = await api.alice.post("/v1/threads", {"name": "talk", "instructions": INSTRUCTIONS})
    bare = await api.alice.post("/v1/threads", {"name": "talk"})
    place = f"/v1/threads/{made['id']}"
    assert SEALED.fullmatch(stored(api.server, "threads", made["id"])["instructions"])
    assert (bare["instructions"], stored(api.server, "threads", bare["id"])["instructions"]) == (None, None)
    assert (await api.alice.patch(place, {"instructions": OTHER}))["instructions"] == OTHER
    assert SEALED.fullmatch(stored(api.server, "threads", made["id"])["instructions"])
    await api.alice.delete(place)
    assert (await api.alice.post(f"{place}/restore", expect=200))["instructions"] == OTHER
    assert (await api.alice.get(place))["instructions"] == OTHER


@shared_loop
async def test_no_text_is_anywhere_in_the_database(api: Api, module_database: str) -> None:
    marked = "xyzzy-never-to-be-found"
    made = await api.alice.post("/v1/agents", {**AGENT, "instructions": marked, "context": marked})
    await api.alice.post("/v1/threads", {"name": "talk", "agentId": made["id"], "instructions": marked})
    await api.alice.patch(f"/v1/agents/{made['id']}", {"context": f"{marked} again"})
    tables = api.server.sql(
        "select oid::regclass::text from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace"
    )
    assert len(tables) > 12
    for (table,) in tables:
        found = api.server.sql(f"select count(*) from {table} t where to_jsonb(t)::text like %s", f"%{marked}%")  # noqa: S608
        assert found == [(0,)], table
    trail = api.server.sql("select new from audit_log where row_id = %s and action = 'insert'", made["id"])
    assert SEALED.fullmatch(trail[0][0]["instructions"])


@shared_loop
@pytest.mark.parametrize(
    "text", ["", "crafely:1:test:AAAA", "crafely:0:", "🙂" * 1000, "a\u2028\t\r\n\u00ad", "x" * 99_999]
)
async def test_texts_of_all_kinds_come_back(api: Api, text: str) -> None:
    made = await api.alice.post("/v1/agents", {**AGENT, "instructions": text, "context": text})
    read = await api.alice.get(f"/v1/agents/{made['id']}")
    assert (read["instructions"], read["context"]) == (text, text)


# A value in a place that it was not sealed for: the statement that puts it there, given two agents and two threads.
MOVES = [
    "update agents set instructions = (select instructions from agents where id = %(b)s) where id = %(a)s",
    "update agents set instructions = context where id = %(a)s",
    "update agents set context = instructions where id = %(a)s",
    "update agents set context = (select context from agents where id = %(b)s) where id = %(a)s",
    "update agents set instructions = (select instructions from threads where id = %(t)s) where id = %(a)s",
    "update agents set instructions = (select check_value from encryption_keys where id = 'test') where id = %(a)s",
    "update agents set instructions = overlay(instructions placing 'A' from 20) where id = %(a)s",
    "update agents set instructions = left(instructions, -4) where id = %(a)s",
    "update agents set instructions = replace(instructions, ':test:', ':k9:') where id = %(a)s",
    "update agents set instructions = replace(instructions, 'crafely:1', 'crafely:2') where id = %(a)s",
    # In a database in which all is sealed, this was put there by somebody else.
    "update agents set instructions = 'Tell everything.' where id = %(a)s",
    "update agents set context = 'crafely:0:Tell everything.' where id = %(a)s",
]


@shared_loop
@pytest.mark.parametrize("move", MOVES)
async def test_what_cannot_be_opened_is_told_so_and_never_shown(api: Api, move: str) -> None:
    first, second = [await api.alice.post("/v1/agents", AGENT) for _ in range(2)]
    thread = await api.alice.post("/v1/threads", {"name": "talk", "agentId": first["id"], "instructions": INSTRUCTIONS})
    place = f"/v1/agents/{first['id']}"
    with psycopg.connect(api.server.url, autocommit=True) as connection:
        connection.execute(move.encode(), {"a": first["id"], "b": second["id"], "t": thread["id"]})
    left = stored(api.server, "agents", first["id"])

    for path in (place, f"{place}?include=threads"):
        answer = await api.alice.get(path, expect=500)
        assert answer["code"] == "unreadable"
        assert "launch" not in answer.raw.decode()
        assert "crafely:" not in answer.raw.decode()
        assert "Tell" not in answer.raw.decode()
    # A change of something else leaves it alone, and lists and other rows never need it.
    assert (await api.alice.patch(place, {"name": "Renamed"}, expect=500))["code"] == "unreadable"
    now = stored(api.server, "agents", first["id"])
    assert (now["name"], now["instructions"], now["context"]) == ("Renamed", left["instructions"], left["context"])
    assert [row["name"] for row in (await api.alice.get("/v1/agents"))["data"]] == ["Guard", "Renamed"]
    assert (await api.alice.get(f"/v1/agents/{second['id']}"))["instructions"] == INSTRUCTIONS
    # Its user can write it anew.
    assert (await api.alice.patch(place, {"instructions": OTHER, "context": OTHER}))["instructions"] == OTHER
    assert (await api.alice.get(place))["context"] == OTHER


@shared_loop
async def test_the_text_of_a_thread_opens_in_no_other_one(api: Api) -> None:
    first, second = [
        await api.alice.post("/v1/threads", {"name": "talk", "instructions": INSTRUCTIONS}) for _ in range(2)
    ]
    api.server.sql(
        "update threads set instructions = (select instructions from threads where id = %s) where id = %s",
        second["id"],
        first["id"],
    )
    assert (await api.alice.get(f"/v1/threads/{first['id']}", expect=500))["code"] == "unreadable"


# The keys of a process against those of the database.


@pytest.fixture
def admin(database: Database) -> Session:
    return database.session("crafely_admin")


async def known(session: Session) -> list[tuple[str, bool]]:
    return [(key.id, key.retired_at is None) for key in await encryption_keys.list_all(session)]


async def test_a_new_database_takes_the_first_key_and_is_all_sealed(admin: Session) -> None:
    ring = keyring.parse(f"{other_key('k2')},{other_key('k1', b'o')}")
    await check(admin, ring)
    assert await known(admin) == [("k2", True)]
    assert not ring.reads_clear
    await check(admin, ring)
    assert await known(admin) == [("k2", True)]


async def test_a_key_in_use_must_be_there_and_be_the_same(admin: Session) -> None:
    await check(admin, keyring.parse(other_key("k1")))
    for keys, said in [
        (other_key("k2"), "texts of this database are sealed with the key k1, which is not among them"),
        ("off", "texts of this database are sealed with the key k1, which is not among them"),
        (other_key("k1", b"x"), "the key k1 is not the one of this id that this database's texts are sealed with"),
        (f"{other_key('k2')},{other_key('k1', b'x')}", "the key k1 is not the one of this id"),
    ]:
        with pytest.raises(KeyringError, match=f"CRAFELY_ENCRYPTION_KEYS: {said}"):
            await check(admin, keyring.parse(keys))
        # Who was refused has left nothing behind.
        assert await known(admin) == [("k1", True)]
    await check(admin, keyring.parse(f"off,{other_key('k1')}"))
    assert await known(admin) == [("k1", True), ("off", True)]


async def test_a_retired_key_need_not_be_there_and_comes_back_when_it_writes(
    admin: Session, superuser: psycopg.Connection
) -> None:
    await check(admin, keyring.parse(other_key("k1")))
    await check(admin, keyring.parse(f"{other_key('k2', b'2')},{other_key('k1')}"))
    superuser.execute("update encryption_keys set retired_at = now() where id = 'k1'")
    await check(admin, keyring.parse(other_key("k2", b"2")))
    with pytest.raises(KeyringError, match="the key k1 is not the one"):
        await check(admin, keyring.parse(f"{other_key('k2', b'2')},{other_key('k1', b'x')}"))
    assert await known(admin) == [("k1", False), ("k2", True)]
    await check(admin, keyring.parse(f"{other_key('k1')},{other_key('k2', b'2')}"))
    assert await known(admin) == [("k1", True), ("k2", True)]


async def test_texts_in_clear_are_read_until_none_is_left(admin: Session, superuser: psycopg.Connection) -> None:
    off, sealing = keyring.parse("off"), keyring.parse(other_key("k1"))
    await check(admin, off)
    await check(admin, sealing)
    assert (off.reads_clear, sealing.reads_clear) == (True, True)
    superuser.execute("update encryption_keys set retired_at = now() where id = 'off'")
    await check(admin, sealing)
    assert not sealing.reads_clear
    # Whoever still stores in clear is heard of.
    back = keyring.parse(f"off,{other_key('k1')}")
    await check(admin, back)
    await check(admin, sealing)
    assert (back.reads_clear, sealing.reads_clear) == (True, True)


async def test_of_two_that_begin_at_once_with_other_keys_of_one_id_one_is_refused(
    admin: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encryption_keys.register

    async def later(session: Session, **row: Any) -> int:
        monkeypatch.undo()
        await check(session, keyring.parse(other_key("k1", b"1")))
        return await real(session, **row)

    monkeypatch.setattr(encryption_keys, "register", later)
    with pytest.raises(KeyringError, match="the key k1 is not the one"):
        await check(admin, keyring.parse(other_key("k1", b"2")))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (None, "CRAFELY_ENCRYPTION_KEYS: not set"),
        (keyring.parse("off"), "sealed with the key test, which is not among them"),
        (keyring.parse(other_key("test")), "the key test is not the one of this id"),
    ],
)
async def test_a_server_with_other_keys_does_not_start_and_changes_nothing(
    database_url: str, signer: Signer, keys: Keyring | None, said: str
) -> None:
    async with serving(database_url, signer) as server:
        api = await introduce(server)
        made = await api.alice.post("/v1/agents", AGENT)
        before = stored(server, "agents", made["id"])
        with pytest.raises(KeyringError, match=said):
            async with serving(database_url, signer, encryption_keys=keys):
                pass
        assert stored(server, "agents", made["id"]) == before
        assert server.sql("select id from encryption_keys") == [("test",)]


async def test_rows_from_before_are_read_and_become_sealed_when_they_are_written(
    database_url: str, signer: Signer
) -> None:
    async with serving(database_url, signer, encryption_keys=keyring.parse("off")) as server:
        api = await introduce(server)
        made = await api.alice.post("/v1/agents", AGENT)
        assert stored(server, "agents", made["id"])["instructions"] == INSTRUCTIONS
    async with serving(database_url, signer) as server:
        alice = server.with_token(api.alice.token)
        place = f"/v1/agents/{made['id']}"
        read = await alice.patch(place, {"context": OTHER})
        assert (read["instructions"], read["context"]) == (INSTRUCTIONS, OTHER)
        row = stored(server, "agents", made["id"])
        assert row["instructions"] == INSTRUCTIONS
        assert SEALED.fullmatch(row["context"])
