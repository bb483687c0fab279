"""Stands where the store will: rows of API keys."""

import asyncio
from datetime import datetime

import msgspec

from crafely.auth import KeyRecord, keys


class Row(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    key_id: str
    hashed_key: str
    user_id: str = "user_2b"
    permissions: tuple[str, ...] = ("agents:read",)
    active: bool = True
    expires_at: datetime | None = None
    rate_limit: int | None = None


class Table:
    """Rows by key id, and a note of what was asked of it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.looked_up: list[str] = []
        self.rehashed = 0
        self.seen: list[str] = []
        self.broken: Exception | None = None
        # Cleared: what was read is on its way, and does not arrive.
        self.answers = asyncio.Event()
        self.answers.set()

    async def lookup(self, key_id: str) -> Row | None:
        self.looked_up.append(key_id)
        found = self.rows.get(key_id)
        await self.answers.wait()
        return found

    async def rehash(self, record: KeyRecord, hashed_key: str) -> None:
        if self.broken is not None:
            raise self.broken
        self.rehashed += 1
        self.change(record.key_id, hashed_key=hashed_key)

    def change(self, key_id: str, **changes: object) -> None:
        self.rows[key_id] = msgspec.structs.replace(self.rows[key_id], **changes)


def with_secret(token: str, secret: str) -> str:
    """The token with another secret and the CRC that belongs to it."""
    body = token[: -keys.CRC_LENGTH - keys.SECRET_LENGTH] + secret
    return body + keys._crc(body)
