"""Keys that texts are sealed with: ``sql/encryption_keys/``. What is known of them, never they themselves."""

from datetime import datetime

from crafely.db.query import Executor, Row, sql


class EncryptionKey(Row, frozen=True):
    """A key. ``check_value`` is a known text that it has sealed; None for «off», which stands for texts in clear."""

    id: str
    check_value: str | None
    # When no text was sealed with it any more; None: it is in use.
    retired_at: datetime | None


class SealedTexts(Row, frozen=True):
    """How many texts of a column are sealed with a key; «off»: are in clear."""

    table_name: str
    column_name: str
    key_id: str
    texts: int


@sql
async def list_all(db: Executor) -> list[EncryptionKey]:
    """Every key that texts of this database are or were sealed with."""


@sql
async def register(db: Executor, *, id: str, check_value: str | None) -> int:
    """Notes that a key is in use. Gives 0 where that was known."""


@sql
async def retire(db: Executor, *, id: str) -> int:
    """Notes that no text is sealed with a key any more. Gives 0 where that was known, or there is no such key."""


@sql
async def count_texts(db: Executor) -> list[SealedTexts]:
    """How many texts each key has sealed, by table and column."""
