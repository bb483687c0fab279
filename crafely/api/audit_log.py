"""The audit trail: who changed what, through which request. Only read: the database writes it."""

import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from crafely.api.wire import Call, ListQuery, Page, Problem, Timestamp, found, in_utc, invalid, page, position
from crafely.auth.permissions import ADMIN, allows
from crafely.keyring import Keyring, UnreadableError, key_id
from crafely.store import audit_log
from crafely.store.audit_log import AuditChange, AuditEntry

Text = Annotated[str, Meta(min_length=1, max_length=255)]

_BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)
# Ids are bigint; no row has the largest.
_LAST_ID = 2**63 - 1
_ID = re.compile("[0-9]{1,19}")

_columns = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)


class ListChanges(ListQuery, kw_only=True, frozen=True):
    """Which changes to list."""

    user_id: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=255,
                description="Whose rows. Administrators may name anybody; for them, not sent means everybody's.",
            ),
        ]
        | None
    ) = None
    table_name: (
        Annotated[
            Literal["agents", "api_keys", "encryption_keys", "packages", "threads", "usage", "user_subscriptions"],
            Meta(description="The table whose rows changed."),
        ]
        | None
    ) = None
    row_id: (
        Annotated[str, Meta(min_length=1, max_length=255, description="The row that changed. With tableName.")] | None
    ) = None
    action: Literal["insert", "update", "delete", "truncate"] | None = None
    actor_user_id: (
        Annotated[str, Meta(min_length=1, max_length=255, description="The user who made the changes.")] | None
    ) = None
    request_id: (
        Annotated[str, Meta(min_length=1, max_length=255, description="The X-Request-Id of the request.")] | None
    ) = None
    from_: Annotated[Timestamp, Meta(description="The first moment that counts.")] | None = msgspec.field(
        default=None, name="from"
    )
    to: Annotated[Timestamp, Meta(description="The first moment that no longer counts.")] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_id is not None and self.table_name is None:
            raise invalid("required with rowId", parameter="tableName")


async def list_(call: Call, query: ListChanges) -> Page[AuditChange]:
    """List changes.

    The changes of the caller's own rows, newest first; for administrators, of everybody's. Of one row
    (`tableName` and `rowId`), one request, one actor, or one span of time: `from` counts, `to` does not.
    """
    everybodys = allows(call.caller.permissions, ADMIN)
    user_id = query.user_id if everybodys else call.caller.user_id
    if query.user_id not in {None, user_id}:
        raise Problem("insufficient_permissions", f"The changes of others' rows take the permission {ADMIN}.")
    from_time = in_utc(query.from_, parameter="from") if query.from_ else _BEGINNING
    to_time = in_utc(query.to, parameter="to") if query.to else _END
    if to_time <= from_time:
        raise invalid("expected a later one than from", parameter="to")
    before, before_id = position(query)
    number = _number(before_id) if before_id else _LAST_ID
    session = call.services.session(call, "crafely_admin" if everybodys else "crafely_app")
    wanted: dict[str, Any] = {
        **{name: getattr(query, name) for name in ("table_name", "row_id", "action", "actor_user_id", "request_id")},
        "from_time": from_time,
        "take": query.take + 1,
        "skip": query.skip or 0,
    }
    if everybodys and not (user_id or query.row_id or query.request_id or query.actor_user_id):
        rows = await audit_log.list_all(session, **wanted, to_time=to_time, before_id=number)
        return page(rows, query)
    # Of the changes at the very end none counts.
    before, number = min((before, number), (to_time, -1))
    wanted |= {"user_id": user_id, "before": before, "before_id": number}
    # By what there is the least of. A user's own changes are found by the user, whatever else is asked for.
    if everybodys and query.row_id is not None:
        rows = await audit_log.list_for_row(session, **wanted)
    elif everybodys and query.request_id is not None:
        rows = await audit_log.list_for_request(session, **wanted)
    elif user_id is not None:
        rows = await audit_log.list_for_user(session, **wanted)
    else:
        del wanted["user_id"]
        rows = await audit_log.list_for_actor(session, **wanted)
    return page(rows, query)


async def get(call: Call, id: str) -> AuditEntry:
    """Read a change.

    With the values before and after of the columns that changed, of an insert or a delete of all. Secrets are never
    among them: they read `[secret]`. Texts that are encrypted are so here, too; only whose row it is reads them.
    """
    everybodys = allows(call.caller.permissions, ADMIN)
    session = call.services.session(call, "crafely_admin" if everybodys else "crafely_app")
    user_id = None if everybodys else call.caller.user_id
    number = int(id) if _ID.fullmatch(id) else _LAST_ID
    entry = found(await audit_log.get(session, id=min(number, _LAST_ID), user_id=user_id))
    if entry.user_id != call.caller.user_id:
        return entry
    ring: Keyring = call.services.keyring
    return msgspec.structs.replace(entry, old=_opened(ring, entry, entry.old), new=_opened(ring, entry, entry.new))


def _opened(ring: Keyring, entry: AuditEntry, values: Raw | None) -> Raw | None:
    """The values with the texts that are sealed. What no key opens, for it is not there any more, stays as it is."""
    if values is None or entry.row_id is None:
        return values
    columns = _columns.decode(values)
    for name, value in columns.items():
        # All others stay as they are written, to the last digit.
        if bytes(value).startswith(b'"') and key_id(text := _text.decode(value)) is not None:
            with suppress(UnreadableError):
                columns[name] = Raw(msgspec.json.encode(ring.open(text, entry.table_name, name, entry.row_id)))
    return Raw(msgspec.json.encode(columns))


def _number(id: str) -> int:
    """The id in a cursor. Raises Problem (422 on the parameter cursor) where it is of another list."""
    if not _ID.fullmatch(id) or int(id) > _LAST_ID:
        raise invalid("expected the nextCursor of an earlier page of this list", parameter="cursor")
    return int(id)
