"""Agents: ``sql/agents/``."""

from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from crafely.db.query import Executor, Row, sql


class AgentSummary(Row, frozen=True):
    """An agent in a list: without what makes it long."""

    id: str
    name: str
    created_at: datetime
    updated_at: datetime


class AgentThread(Row, frozen=True):
    """A thread of an agent: without its instructions."""

    id: str
    agent_id: str
    name: str
    storage_id: str | None
    model: str | None
    created_at: datetime
    updated_at: datetime


class SealedAgent(Row, frozen=True):
    """An agent's texts, as they are stored."""

    id: str
    instructions: str
    context: str | None


class Agent(Row, frozen=True):
    """An agent. ``tools`` is a JSON array, as it was given; instructions and context are as they are stored: sealed."""

    id: str
    name: str
    instructions: str
    tools: msgspec.Raw | None
    context: str | None
    created_at: datetime
    updated_at: datetime
    # Live threads, newest first, where they were asked for.
    threads: list[AgentThread] | UnsetType = UNSET


@sql
async def create(
    db: Executor,
    *,
    id: str,
    user_id: str,
    name: str,
    instructions: str,
    tools: msgspec.Raw | None,
    context: str | None,
) -> Agent:
    """A new agent."""


@sql
async def get(db: Executor, *, id: str, user_id: str) -> Agent | None:
    """One of the user's live agents."""


@sql
async def get_with_threads(db: Executor, *, id: str, user_id: str, take: int) -> Agent | None:
    """One of the user's live agents with so many of its live threads, newest first."""


@sql
async def list_for_user(
    db: Executor, *, user_id: str, before: datetime, before_id: str, take: int, skip: int
) -> list[AgentSummary]:
    """The user's live agents, newest first, from a position on."""


@sql
async def list_by_name(
    db: Executor, *, user_id: str, name: str, before: datetime, before_id: str, take: int, skip: int
) -> list[AgentSummary]:
    """The user's live agents whose name begins so, whatever its case, newest first, from a position on."""


@sql
async def update(
    db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None, changes: msgspec.Raw
) -> Agent | None:
    """Changes the columns that the JSON object names: name, instructions, tools, context.

    None where there is no such agent, or it is none of these versions (its updated_at; no versions: whichever).
    """


@sql
async def delete(db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None) -> int:
    """Deletes a live agent softly. Gives 0 where there is none, or it is none of these versions, else 1."""


@sql
async def restore(db: Executor, *, id: str, user_id: str) -> Agent | None:
    """Brings a deleted agent back; a live one stays as it is."""


@sql
async def list_to_reencrypt(db: Executor, *, key_id: str, after: str, take: int) -> list[SealedAgent]:
    """Every user's agents with a text that is not sealed with this key, by id, from an id on."""


@sql
async def reencrypt(db: Executor, *, records: msgspec.Raw) -> int:
    """Replaces the texts of many agents where they are still the old ones. Gives how many it replaced.

    Takes a JSON array of objects: id, old_instructions, old_context, instructions, context.
    """
