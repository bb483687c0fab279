"""Threads: ``sql/threads/``."""

from datetime import datetime

import msgspec

from crafely.db.query import Executor, Row, sql


class ThreadSummary(Row, frozen=True):
    """A thread in a list: without its instructions."""

    id: str
    agent_id: str | None
    name: str
    storage_id: str | None
    model: str | None
    created_at: datetime
    updated_at: datetime


class SealedThread(Row, frozen=True):
    """A thread's text, as it is stored."""

    id: str
    instructions: str


class Thread(Row, frozen=True):
    """A thread, with an agent or without one; instructions are as they are stored: sealed."""

    id: str
    agent_id: str | None
    name: str
    storage_id: str | None
    instructions: str | None
    model: str | None
    created_at: datetime
    updated_at: datetime


@sql
async def create(
    db: Executor,
    *,
    id: str,
    user_id: str,
    name: str,
    storage_id: str | None,
    instructions: str | None,
    model: str | None,
    agent_id: str | None,
) -> Thread | None:
    """A new thread; None where the user has no such live agent."""


@sql
async def get(db: Executor, *, id: str, user_id: str) -> Thread | None:
    """One of the user's live threads."""


@sql
async def list_for_user(
    db: Executor, *, user_id: str, before: datetime, before_id: str, take: int, skip: int
) -> list[ThreadSummary]:
    """The user's live threads, newest first, from a position on."""


@sql
async def list_for_agent(
    db: Executor, *, user_id: str, agent_id: str, before: datetime, before_id: str, take: int, skip: int
) -> list[ThreadSummary]:
    """One agent's live threads, newest first, from a position on."""


@sql
async def update(
    db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None, changes: msgspec.Raw
) -> Thread | None:
    """Changes the columns that the JSON object names: name, storage_id, instructions, model, agent_id.

    None where there is no such thread, no such live agent, or it is none of these versions (its updated_at; no
    versions: whichever).
    """


@sql
async def delete(db: Executor, *, id: str, user_id: str, versions: list[datetime] | None = None) -> int:
    """Deletes a live thread softly. Gives 0 where there is none, or it is none of these versions, else 1."""


@sql
async def restore(db: Executor, *, id: str, user_id: str) -> Thread | None:
    """Brings a deleted thread back; a live one stays as it is."""


@sql
async def list_to_reencrypt(db: Executor, *, key_id: str, after: str, take: int) -> list[SealedThread]:
    """Every user's threads with a text that is not sealed with this key, by id, from an id on."""


@sql
async def reencrypt(db: Executor, *, records: msgspec.Raw) -> int:
    """Replaces the texts of many threads where they are still the old ones. Gives how many it replaced.

    Takes a JSON array of objects: id, old_instructions, instructions.
    """
