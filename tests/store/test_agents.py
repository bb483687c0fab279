"""Agents: what is written comes back, softly deleted ones are out of sight, and changes change what they name."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
import pytest

from crafely.db.session import Session
from crafely.store import agents, threads
from crafely.store.agents import Agent

END = datetime.max.replace(tzinfo=UTC)
TOOLS = msgspec.Raw(b'[{"name": "search", "depth": 1.50}]')


async def make(session: Session, name: str = "Helper") -> Agent:
    return await agents.create(
        session,
        id=f"agnt_{uuid4()}",
        user_id="alice",
        name=name,
        instructions="Be kind.",
        tools=TOOLS,
        context="Facts.",
    )


def plain(agent: Agent) -> dict[str, Any]:
    """Its fields; JSON as bytes, which can be compared."""
    return {**msgspec.structs.asdict(agent), "tools": agent.tools and bytes(agent.tools)}


async def get(session: Session, agent: Agent) -> Agent:
    found = await agents.get(session, id=agent.id, user_id="alice")
    assert found is not None
    return found


async def make_thread(session: Session, agent: Agent, name: str) -> None:
    made = await threads.create(
        session,
        id=f"thrd_{uuid4()}",
        user_id="alice",
        name=name,
        storage_id=None,
        instructions=None,
        model="gpt-4",
        agent_id=agent.id,
    )
    assert made is not None


async def test_an_agent_comes_back_as_it_was_made(alice: Session) -> None:
    made = await make(alice)

    assert made.id.startswith("agnt_")
    assert (made.name, made.instructions, made.context) == ("Helper", "Be kind.", "Facts.")
    assert bytes(made.tools or b"") == bytes(TOOLS)
    assert made.created_at == made.updated_at
    assert made.threads is msgspec.UNSET
    assert plain(await get(alice, made)) == plain(made)


async def test_an_agent_is_nobody_elses(alice: Session, bob: Session) -> None:
    made = await make(alice)

    for session, user_id in ((bob, "bob"), (bob, "alice"), (alice, "bob")):
        assert await agents.get(session, id=made.id, user_id=user_id) is None
        assert await agents.update(session, id=made.id, user_id=user_id, changes=msgspec.Raw(b'{"name":"x"}')) is None
        assert await agents.delete(session, id=made.id, user_id=user_id) == 0
        assert await agents.restore(session, id=made.id, user_id=user_id) is None
    assert plain(await get(alice, made)) == plain(made)


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        (b'{"name": "Other"}', {"name": "Other"}),
        (b'{"tools": null, "context": null}', {"tools": None, "context": None}),
        (b'{"tools": []}', {"tools": b"[]"}),
        (b'{"name": "Other", "instructions": ""}', {"name": "Other", "instructions": ""}),
        (b"{}", {}),
        # What is no column to change changes nothing.
        (b'{"id": "agnt_x", "user_id": "bob", "deleted_at": "2026-01-01", "unknown": 1}', {}),
    ],
)
async def test_only_what_changes_names_changes(alice: Session, changes: bytes, changed: dict[str, object]) -> None:
    made = await make(alice)

    after = await agents.update(alice, id=made.id, user_id="alice", changes=msgspec.Raw(changes))

    assert after is not None
    was, now = plain(made), plain(after)
    assert now == {**was, **changed, "updated_at": now["updated_at"]}
    assert (now["updated_at"] > was["updated_at"]) == bool(changed)


async def test_a_deleted_agent_is_out_of_sight_until_restored(alice: Session) -> None:
    made = await make(alice)
    await make_thread(alice, made, "stays")

    assert await agents.delete(alice, id=made.id, user_id="alice") == 1
    assert await agents.delete(alice, id=made.id, user_id="alice") == 0
    assert await agents.get(alice, id=made.id, user_id="alice") is None
    assert await agents.get_with_threads(alice, id=made.id, user_id="alice", take=10) is None
    assert await agents.update(alice, id=made.id, user_id="alice", changes=msgspec.Raw(b'{"name":"x"}')) is None

    restored = await agents.restore(alice, id=made.id, user_id="alice")
    assert restored is not None
    assert (restored.id, restored.name) == (made.id, made.name)
    again = await agents.restore(alice, id=made.id, user_id="alice")
    assert again is not None
    assert plain(again) == plain(restored)
    found = await agents.get_with_threads(alice, id=made.id, user_id="alice", take=10)
    assert found is not None
    assert found.threads
    assert [thread.name for thread in found.threads] == ["stays"]


async def test_an_agent_comes_with_its_live_threads_newest_first(alice: Session, superuser: psycopg.Connection) -> None:
    made, other = await make(alice), await make(alice)
    alone = await agents.get_with_threads(alice, id=made.id, user_id="alice", take=5)
    assert alone is not None
    assert plain(alone) == {**plain(made), "threads": []}
    for name in ("first", "second", "deleted", "third"):
        await make_thread(alice, made, name)
    await make_thread(alice, other, "of another agent")
    superuser.execute("update threads set deleted_at = now() where name = 'deleted'")

    found = await agents.get_with_threads(alice, id=made.id, user_id="alice", take=2)

    assert found is not None
    assert isinstance(found.threads, list)
    assert [(t.name, t.agent_id) for t in found.threads] == [("third", made.id), ("second", made.id)]
    stored = superuser.execute("select created_at from threads where name = 'third'").fetchone()
    assert stored == (found.threads[0].created_at,)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("he", ["Helper", "HELLO"]),
        ("HELL", ["HELLO"]),
        ("", ["Ärger", "100%", "a_b", "Helper", "HELLO"]),
        ("%", []),
        ("100%", ["100%"]),
        ("a_", ["a_b"]),
        ("a\\", []),
        ("är", ["Ärger"]),
        ("helpers", []),
    ],
)
async def test_a_name_is_found_by_how_it_begins_whatever_its_case(alice: Session, asked: str, found: list[str]) -> None:
    for name in ("HELLO", "Helper", "a_b", "100%", "Ärger"):
        await make(alice, name)
    gone = await make(alice, "Helper that is gone")
    await agents.delete(alice, id=gone.id, user_id="alice")

    rows = await agents.list_by_name(alice, user_id="alice", name=asked, before=END, before_id="", take=100, skip=0)

    assert [row.name for row in rows] == found
