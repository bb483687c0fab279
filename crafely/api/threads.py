"""Threads: conversations, with an agent or without one. A deleted thread can be restored."""

from typing import Annotated, Any
from uuid import uuid4

from msgspec import UNSET, Meta, UnsetType

from crafely.api.preconditions import IfMatch, matched
from crafely.api.services import changes
from crafely.api.wire import Body, Call, ListQuery, Page, Problem, found, invalid, page, position
from crafely.keyring import Keyring, sealed_columns
from crafely.store import threads
from crafely.store.threads import SealedThread, Thread, ThreadSummary

# What is stored sealed.
SEALED = sealed_columns(SealedThread)

Text = Annotated[str, Meta(min_length=1, max_length=255)]
Instructions = Annotated[str, Meta(max_length=100_000)]


class NewThread(Body, kw_only=True, frozen=True):
    """What a new thread is made from."""

    name: Text
    # One of the caller's agents.
    agent_id: Text | None = None
    # Where the conversation itself is stored; unique.
    storage_id: Text | None = None
    instructions: Instructions | None = None
    # The AI model.
    model: Text | None = None


class ThreadChanges(Body, kw_only=True, frozen=True):
    """What to change; a field that is not sent stays as it is."""

    name: Text | UnsetType = UNSET
    agent_id: Text | None | UnsetType = UNSET
    storage_id: Text | None | UnsetType = UNSET
    instructions: Instructions | None | UnsetType = UNSET
    model: Text | None | UnsetType = UNSET


class ListThreads(ListQuery, kw_only=True, frozen=True):
    """Which threads to list."""

    agent_id: (
        Annotated[str, Meta(min_length=1, max_length=255, description="Only the threads of this agent.")] | None
    ) = None


async def create(call: Call, body: NewThread) -> Thread:
    """Create a thread.

    Alone, or under one of the caller's agents.
    """
    id_ = f"thrd_{uuid4()}"
    thread = await threads.create(
        call.services.session(call),
        id=id_,
        user_id=call.caller.user_id,
        name=body.name,
        storage_id=body.storage_id,
        model=body.model,
        agent_id=body.agent_id,
        **_sealed(call, id_, body),
    )
    if thread is None:
        raise _no_agent()
    call.headers["Location"] = f"/v1/threads/{thread.id}"
    return _opened(call, thread)


async def list_(call: Call, query: ListThreads) -> Page[ThreadSummary]:
    """List threads.

    The caller's own, newest first, without their instructions.
    """
    before, before_id = position(query)
    session, user_id = call.services.session(call), call.caller.user_id
    take, skip = query.take + 1, query.skip or 0
    if query.agent_id is None:
        rows = await threads.list_for_user(
            session, user_id=user_id, before=before, before_id=before_id, take=take, skip=skip
        )
    else:
        rows = await threads.list_for_agent(
            session,
            user_id=user_id,
            agent_id=query.agent_id,
            before=before,
            before_id=before_id,
            take=take,
            skip=skip,
        )
    return page(rows, query)


async def get(call: Call, id: str) -> Thread:
    """Read a thread."""
    return _opened(call, await threads.get(call.services.session(call), id=id, user_id=call.caller.user_id))


async def update(call: Call, id: str, body: ThreadChanges, if_match: IfMatch) -> Thread:
    """Change a thread.

    Only what is sent changes; null takes a value away.
    """
    session, user_id = call.services.session(call), call.caller.user_id
    sent = changes(body, _sealed(call, id, body))
    thread = await threads.update(session, id=id, user_id=user_id, versions=if_match, changes=sent)
    if thread is None and (other := await threads.get(session, id=id, user_id=user_id)):
        if if_match is not None and other.updated_at not in if_match:
            raise Problem("precondition_failed")
        if isinstance(body.agent_id, str):
            raise _no_agent()
    return _opened(call, thread)


async def delete(call: Call, id: str, if_match: IfMatch) -> None:
    """Delete a thread.

    It can be restored.
    """
    session, user_id = call.services.session(call), call.caller.user_id
    count = await threads.delete(session, id=id, user_id=user_id, versions=if_match)
    await matched(count or None, if_match, lambda: threads.get(session, id=id, user_id=user_id))


async def restore(call: Call, id: str) -> Thread:
    """Restore a deleted thread.

    One that is not deleted stays as it is.
    """
    return _opened(call, await threads.restore(call.services.session(call), id=id, user_id=call.caller.user_id))


def _sealed(call: Call, id: str, body: NewThread | ThreadChanges) -> dict[str, Any]:
    """The texts of a body as they are stored in the thread with this id."""
    ring: Keyring = call.services.keyring
    return ring.seal_columns("threads", id, {name: getattr(body, name) for name in SEALED})


def _opened(call: Call, thread: Thread | None) -> Thread:
    """What a statement found, with its texts. Raises Problem (404) where it found nothing; UnreadableError."""
    ring: Keyring = call.services.keyring
    return ring.open_columns("threads", found(thread), SEALED)


def _no_agent() -> Problem:
    return invalid("expected the id of one of the caller's agents", pointer="/agentId")
