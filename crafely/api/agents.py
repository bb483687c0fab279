"""Agents: instructions, tools and context under a name. A deleted agent can be restored."""

from typing import Annotated, Any, Literal
from uuid import uuid4

from msgspec import UNSET, Meta, UnsetType

from crafely.api.preconditions import IfMatch, matched
from crafely.api.services import changes
from crafely.api.wire import Body, Call, FreeArray, ListQuery, Page, Query, found, free_json, page, position
from crafely.keyring import Keyring, sealed_columns
from crafely.store import agents
from crafely.store.agents import Agent, AgentSummary, SealedAgent

# The newest threads that come along with an agent; the others are in the list of threads.
MAX_THREADS = 100

# What is stored sealed.
SEALED = sealed_columns(SealedAgent)

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Instructions = Annotated[str, Meta(max_length=100_000)]
Context = Annotated[str, Meta(max_length=500_000)]


class NewAgent(Body, kw_only=True, frozen=True):
    """What a new agent is made from."""

    name: Name
    # The system instructions.
    instructions: Instructions
    # The tools that it may use: an array in the client's own shape, of at most 64 KiB.
    tools: FreeArray | UnsetType = UNSET
    # Context or knowledge base.
    context: Context | None = None


class AgentChanges(Body, kw_only=True, frozen=True):
    """What to change; a field that is not sent stays as it is."""

    name: Name | UnsetType = UNSET
    instructions: Instructions | UnsetType = UNSET
    tools: FreeArray | UnsetType = UNSET
    context: Context | None | UnsetType = UNSET


class ListAgents(ListQuery, kw_only=True, frozen=True):
    """Which agents to list."""

    name: (
        Annotated[str, Meta(min_length=1, max_length=255, description="The beginning of the name, in any case.")] | None
    ) = None


class GetAgent(Query, kw_only=True, frozen=True):
    """What to bring along."""

    include: Annotated[Literal["threads"], Meta(description="threads: the 100 newest live threads.")] | None = None


async def create(call: Call, body: NewAgent) -> Agent:
    """Create an agent."""
    id_ = f"agnt_{uuid4()}"
    agent = await agents.create(
        call.services.session(call),
        id=id_,
        user_id=call.caller.user_id,
        name=body.name,
        tools=free_json(body.tools, "/tools", kind=list),
        **_sealed(call, id_, body),
    )
    call.headers["Location"] = f"/v1/agents/{agent.id}"
    return _opened(call, agent)


async def list_(call: Call, query: ListAgents) -> Page[AgentSummary]:
    """List agents.

    The caller's own, newest first, without instructions, tools and context.
    """
    before, before_id = position(query)
    session, user_id = call.services.session(call), call.caller.user_id
    take, skip = query.take + 1, query.skip or 0
    if query.name is None:
        rows = await agents.list_for_user(
            session, user_id=user_id, before=before, before_id=before_id, take=take, skip=skip
        )
    else:
        rows = await agents.list_by_name(
            session, user_id=user_id, name=query.name, before=before, before_id=before_id, take=take, skip=skip
        )
    return page(rows, query)


async def get(call: Call, id: str, query: GetAgent) -> Agent:
    """Read an agent.

    With `include=threads` its live threads come along, newest first, without their instructions.
    """
    session, user_id = call.services.session(call), call.caller.user_id
    if query.include == "threads":
        return _opened(call, await agents.get_with_threads(session, id=id, user_id=user_id, take=MAX_THREADS))
    return _opened(call, await agents.get(session, id=id, user_id=user_id))


async def update(call: Call, id: str, body: AgentChanges, if_match: IfMatch) -> Agent:
    """Change an agent.

    Only what is sent changes; null empties tools and context.
    """
    if body.tools is not UNSET:
        free_json(body.tools, "/tools", kind=list)
    session, user_id = call.services.session(call), call.caller.user_id
    sent = changes(body, _sealed(call, id, body))
    agent = await agents.update(session, id=id, user_id=user_id, versions=if_match, changes=sent)
    return _opened(call, await matched(agent, if_match, lambda: agents.get(session, id=id, user_id=user_id)))


async def delete(call: Call, id: str, if_match: IfMatch) -> None:
    """Delete an agent.

    It can be restored. Its threads stay as they are.
    """
    session, user_id = call.services.session(call), call.caller.user_id
    count = await agents.delete(session, id=id, user_id=user_id, versions=if_match)
    await matched(count or None, if_match, lambda: agents.get(session, id=id, user_id=user_id))


async def restore(call: Call, id: str) -> Agent:
    """Restore a deleted agent.

    One that is not deleted stays as it is.
    """
    return _opened(call, await agents.restore(call.services.session(call), id=id, user_id=call.caller.user_id))


def _sealed(call: Call, id: str, body: NewAgent | AgentChanges) -> dict[str, Any]:
    """The texts of a body as they are stored in the agent with this id."""
    ring: Keyring = call.services.keyring
    return ring.seal_columns("agents", id, {name: getattr(body, name) for name in SEALED})


def _opened(call: Call, agent: Agent | None) -> Agent:
    """What a statement found, with its texts. Raises Problem (404) where it found nothing; UnreadableError."""
    ring: Keyring = call.services.keyring
    return ring.open_columns("agents", found(agent), SEALED)
