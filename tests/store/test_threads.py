"""Threads: alone or under an agent of their user's that is live."""

from uuid import uuid4

import msgspec
import psycopg
import pytest

from crafely.db.session import Session
from crafely.store import agents, threads
from crafely.store.threads import Thread


async def make_agent(session: Session, user_id: str = "alice") -> str:
    made = await agents.create(
        session, id=f"agnt_{uuid4()}", user_id=user_id, name="a", instructions="", tools=None, context=None
    )
    return made.id


async def make(
    session: Session, user_id: str = "alice", *, agent_id: str | None = None, storage_id: str | None = None
) -> Thread | None:
    return await threads.create(
        session,
        id=f"thrd_{uuid4()}",
        user_id=user_id,
        name="talk",
        storage_id=storage_id,
        instructions="Short.",
        model="gpt-4",
        agent_id=agent_id,
    )


@pytest.fixture
async def thread(alice: Session) -> Thread:
    made = await make(alice)
    assert made is not None
    return made


async def update(session: Session, thread: Thread, changes: object, user_id: str = "alice") -> Thread | None:
    return await threads.update(
        session, id=thread.id, user_id=user_id, changes=msgspec.Raw(msgspec.json.encode(changes))
    )


async def test_a_thread_comes_back_as_it_was_made(alice: Session) -> None:
    agent_id = await make_agent(alice)

    made = await make(alice, agent_id=agent_id, storage_id="s3://bucket/1")

    assert made is not None
    assert made.id.startswith("thrd_")
    assert (made.agent_id, made.name, made.storage_id) == (agent_id, "talk", "s3://bucket/1")
    assert (made.instructions, made.model) == ("Short.", "gpt-4")
    assert await threads.get(alice, id=made.id, user_id="alice") == made


async def test_a_thread_is_nobody_elses(alice: Session, bob: Session, thread: Thread) -> None:
    for session, user_id in ((bob, "bob"), (bob, "alice"), (alice, "bob")):
        assert await threads.get(session, id=thread.id, user_id=user_id) is None
        assert await update(session, thread, {"name": "x"}, user_id) is None
        assert await threads.delete(session, id=thread.id, user_id=user_id) == 0
        assert await threads.restore(session, id=thread.id, user_id=user_id) is None
    assert await threads.get(alice, id=thread.id, user_id="alice") == thread


async def test_a_thread_goes_under_a_live_agent_of_its_user_only(alice: Session, bob: Session, thread: Thread) -> None:
    deleted, of_bob, live = await make_agent(alice), await make_agent(bob, "bob"), await make_agent(alice)
    await agents.delete(alice, id=deleted, user_id="alice")

    for agent_id in (deleted, of_bob, "agnt_nobodys"):
        assert await make(alice, agent_id=agent_id) is None
        assert await update(alice, thread, {"agent_id": agent_id}) is None
    moved = await update(alice, thread, {"agent_id": live})
    assert moved is not None
    assert moved.agent_id == live
    # Its agent may go and it can still be changed, or leave.
    await agents.delete(alice, id=live, user_id="alice")
    renamed = await update(alice, thread, {"name": "renamed"})
    assert renamed is not None
    assert (renamed.name, renamed.agent_id) == ("renamed", live)
    freed = await update(alice, thread, {"agent_id": None})
    assert freed is not None
    assert freed.agent_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"storage_id": "x", "model": None, "instructions": None},
        {"instructions": "", "model": "gpt-4o"},
        {},
    ],
)
async def test_only_what_changes_names_changes(alice: Session, thread: Thread, changes: dict[str, str | None]) -> None:
    after = await update(alice, thread, changes)

    assert after == msgspec.structs.replace(thread, **changes, updated_at=after.updated_at if after else None)
    assert after is not None
    assert (after.updated_at > thread.updated_at) == bool(changes)


async def test_a_storage_id_is_used_once(alice: Session, bob: Session) -> None:
    await make(alice, storage_id="taken")

    for session, user_id in ((alice, "alice"), (bob, "bob")):
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            await make(session, user_id, storage_id="taken")
        assert caught.value.diag.constraint_name == "threads_storage_id_key"


async def test_a_deleted_thread_is_out_of_sight_until_restored(alice: Session, thread: Thread) -> None:
    assert await threads.delete(alice, id=thread.id, user_id="alice") == 1
    assert await threads.delete(alice, id=thread.id, user_id="alice") == 0
    assert await threads.get(alice, id=thread.id, user_id="alice") is None
    assert await update(alice, thread, {"name": "x"}) is None

    restored = await threads.restore(alice, id=thread.id, user_id="alice")
    assert restored is not None
    assert restored == await threads.get(alice, id=thread.id, user_id="alice")
    assert restored == await threads.restore(alice, id=thread.id, user_id="alice")
