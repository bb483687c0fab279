"""What a client says it used, and the row of ``usage`` that it becomes."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from crafely.api.services import EVENT_WINDOW
from crafely.api.wire import Body, FreeObject, Timestamp, decimal_within, free_json, invalid
from crafely.auth.permissions import CORRECT, allows

# How late a record may come, and how far a client's clock may be ahead. A retry is recognised for longer: EVENT_WINDOW.
LATEST = timedelta(days=35)
AHEAD = timedelta(minutes=5)
MAX_METADATA = 16 * 1024
# What has more digits does not fit; said before it is asked whether there are too many.
MAX_COST = 10**8
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
# Less than nothing takes back what was counted: see columns().
Tokens = Annotated[int, Meta(ge=-INT4_MAX, le=INT4_MAX)]


class UsageRecord(Body, kw_only=True, frozen=True):
    """One metered call; or, with amounts below 0 and the permission usage:correct, the correction of some."""

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


def columns(
    record: UsageRecord, *, permissions: frozenset[str], user_id: str, api_key_id: str | None, pointer: str
) -> UsageRow:
    """The row of ``usage`` for a record.

    Takes what its sender may do, the user, the key that sends it (None: it came with a session token) and the record's
    JSON pointer. Raises Problem (422) for what the type alone does not rule out: a missing key, a cost that does not
    fit, a time too far, an amount below 0.
    """
    if (key := record.api_key_id or api_key_id) is None:
        raise invalid("required, since no API key sends this record", pointer=f"{pointer}/apiKeyId")
    if record.cost is not None:
        decimal_within(record.cost, f"{pointer}/cost", precision=20, scale=12, minimum=-MAX_COST)
    _refuse_correction(record, permissions, pointer)
    if record.created_at is not None:
        now = datetime.now(UTC)
        if not now - LATEST <= record.created_at <= now + AHEAD:
            raise invalid("expected a time of the last 35 days", pointer=f"{pointer}/createdAt")
    tokens_total = record.tokens_total
    if tokens_total is None and (record.tokens_in is not None or record.tokens_out is not None):
        tokens_total = (record.tokens_in or 0) + (record.tokens_out or 0)
        if abs(tokens_total) > INT4_MAX:
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


def _refuse_correction(record: UsageRecord, permissions: frozenset[str], pointer: str) -> None:
    """Raises Problem where an amount is below 0 and may not be. The table's own check is the second of the rules."""
    given = (record.tokens_in or 0, record.tokens_out or 0, record.tokens_total or 0, record.cost or 0)
    # Nearly every record: no more is made of it.
    if min(given) >= 0:
        return
    amounts = dict(zip(("tokensIn", "tokensOut", "tokensTotal", "cost"), given, strict=True))
    for name, amount in amounts.items():
        if amount < 0:
            if not allows(permissions, CORRECT):
                raise invalid(f"expected 0 or more; less takes the permission {CORRECT}", pointer=f"{pointer}/{name}")
            if max(amounts.values()) > 0:
                raise invalid(
                    "expected all amounts below 0, or none: take back what was counted in a record of its own",
                    pointer=f"{pointer}/{name}",
                )


def encode_record(row: UsageRow) -> bytes:
    """The JSON object of one record, which a batch is joined from."""
    return _encode(row)


def encode_records(rows: Sequence[UsageRow]) -> Raw:
    """The JSON array that ``sql/usage/record.sql`` takes."""
    return Raw(_encode(rows))


_encode = msgspec.json.Encoder(decimal_format="string").encode
