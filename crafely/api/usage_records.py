"""What a client says it used, and the row of ``usage`` that it becomes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from crafely.api.services import EVENT_WINDOW
from crafely.api.wire import Body, FreeObject, Timestamp, decimal_within, free_json, invalid

# How late a record may come, and how far a client's clock may be ahead. A retry is recognised for longer: EVENT_WINDOW.
LATEST = timedelta(days=35)
AHEAD = timedelta(minutes=5)
MAX_METADATA = 16 * 1024
INT4_MAX = 2**31 - 1

Text = Annotated[str, Meta(min_length=1, max_length=255)]
EventId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        description="The client's own name of the event. Sent again by the same user, the record is answered with "
        f"duplicate: true and counted once. The name is remembered for {EVENT_WINDOW.days} days.",
    ),
]
Tokens = Annotated[int, Meta(ge=0, le=INT4_MAX)]


class UsageRecord(Body, kw_only=True, frozen=True):
    """One metered call."""

    # One of the caller's keys; the key that sends the record, where it is not sent.
    api_key_id: Text | None = None
    event_id: EventId | None = None
    provider: Text | None = None
    model: Text | None = None
    # chat, image, embeddings and so on.
    type: Text | None = None
    tokens_in: Tokens | None = None
    tokens_out: Tokens | None = None
    # Where it is not sent: the sum of the two, if either was.
    tokens_total: Tokens | None = None
    # With at most 12 places, as a string so that no program rounds it on the way: "0.000000400000".
    cost: Decimal | None = None
    currency: Annotated[str, Meta(pattern="^[a-z]{3}$(?!\n)")] = "usd"
    # An object in the client's own shape, of at most 16 KiB.
    metadata: FreeObject | UnsetType = UNSET
    # When it was used: now, where it is not sent; at most 35 days ago.
    created_at: Timestamp | None = None


class UsageRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ``sql/usage/record.sql`` takes for one record: the columns of ``usage``, without those that are null.

    Which it reads as null just the same, in less time.
    """

    user_id: str
    api_key_id: str
    event_id: str | None = None
    provider: str | None = None
    model: str | None = None
    type: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_total: int | None = None
    cost: Decimal | None = None
    currency: str | None = None
    metadata: Raw | None = None
    created_at: datetime | None = None


def columns(record: UsageRecord, *, user_id: str, api_key_id: str | None, pointer: str) -> UsageRow:
    """The row of ``usage`` for a record.

    Takes the user, the key that sends it (None: it came with a session token) and the record's JSON pointer. Raises
    Problem (422) for what the type alone does not rule out: a missing key, a cost that does not fit, a time too far.
    """
    if (key := record.api_key_id or api_key_id) is None:
        raise invalid("required, since no API key sends this record", pointer=f"{pointer}/apiKeyId")
    if record.cost is not None:
        decimal_within(record.cost, f"{pointer}/cost", precision=20, scale=12)
    if record.created_at is not None:
        now = datetime.now(UTC)
        if not now - LATEST <= record.created_at <= now + AHEAD:
            raise invalid("expected a time of the last 35 days", pointer=f"{pointer}/createdAt")
    tokens_total = record.tokens_total
    if tokens_total is None and (record.tokens_in is not None or record.tokens_out is not None):
        tokens_total = (record.tokens_in or 0) + (record.tokens_out or 0)
        if tokens_total > INT4_MAX:
            raise invalid(f"tokensIn and tokensOut together are more than {INT4_MAX}", pointer=f"{pointer}/tokensIn")
    return UsageRow(
        user_id,
        key,
        record.event_id,
        record.provider,
        record.model,
        record.type,
        record.tokens_in,
        record.tokens_out,
        tokens_total,
        record.cost,
        record.currency,
        free_json(record.metadata, f"{pointer}/metadata", kind=dict, max_bytes=MAX_METADATA),
        # PostgreSQL knows no offset of sixteen hours or more, which RFC 3339 allows.
        record.created_at.astimezone(UTC) if record.created_at is not None else None,
    )


def encode_record(row: UsageRow) -> bytes:
    """The JSON object of one record, which a batch is joined from."""
    return _encode(row)


def encode_records(rows: Sequence[UsageRow]) -> Raw:
    """The JSON array that ``sql/usage/record.sql`` takes."""
    return Raw(_encode(rows))


_encode = msgspec.json.Encoder(decimal_format="string").encode
