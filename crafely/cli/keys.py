"""``crafely keys``: make, list, rotate and revoke API keys, for whoever may reach the database."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import psycopg
from rich import box
from rich.markup import escape
from rich.table import Table

from crafely.auth import keys
from crafely.auth.families import MAX_OVERLAP, revoke_family
from crafely.auth.hashing import Hasher
from crafely.auth.permissions import ADMIN, EVERYTHING, MAX_COUNT, Permission
from crafely.cli import encryption_keys
from crafely.cli.tables import show
from crafely.cli.target import connected, require_schema, target
from crafely.config import Settings, load
from crafely.db.session import Identity, Session
from crafely.store import api_keys
from crafely.store.api_keys import ApiKey

T = TypeVar("T")

# The user that the keys of this command belong to, unless it is told another.
ADMIN_USER = "admin"
MAX_LISTED = 1000
MAX_TEXT = 255


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parser = commands.add_parser("keys", help="make, list, rotate and revoke API keys", description=__doc__)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("--name", type=_text, help="for people, to tell keys apart")
    create.add_argument(
        "--permission",
        action="append",
        dest="permissions",
        type=_permission,
        metavar="NAME",
        help=f"such as agents:read; may be repeated (default: {EVERYTHING}, which is all but an administrator's)",
    )
    create.add_argument("--admin", action="store_true", help=f"an administrator's key: {EVERYTHING} and {ADMIN}")
    create.add_argument("--expires-at", type=_future, metavar="TIME", help="RFC 3339, such as 2027-01-31T12:00:00Z")
    create.set_defaults(run=_create)

    show = actions.add_parser("list", help="list a user's keys, newest first")
    show.set_defaults(run=_list)

    rotate = actions.add_parser("rotate", help="make a key in the place of another and print it, this once")
    rotate.add_argument("id", type=_text, help="key_…")
    rotate.add_argument(
        "--overlap-seconds",
        type=_overlap,
        required=True,
        metavar="SECONDS",
        help="how long the old key stays good; 0 revokes it now",
    )
    rotate.set_defaults(run=_rotate)

    revoke = actions.add_parser("revoke", help="revoke a key, for good")
    revoke.add_argument("id", type=_text, help="key_…")
    revoke.add_argument("--family", action="store_true", help="and all keys that it replaced, or that replaced it")
    revoke.set_defaults(run=_revoke)
    encryption_keys.add(actions)
    for action in (create, show, rotate, revoke):
        action.add_argument("--user", type=_text, default=ADMIN_USER, help=f"whose key (default: {ADMIN_USER})")
        action.add_argument("--json", action="store_true", help="for programs")


def _text(argument: str) -> str:
    if not 1 <= len(argument) <= MAX_TEXT:
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_TEXT} characters")
    if not argument.isprintable():
        raise argparse.ArgumentTypeError("expected printable characters in UTF-8")
    return argument


def _permission(argument: str) -> str:
    try:
        return msgspec.convert(argument, Permission)
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError("expected a name such as agents:read, or *") from None


def _overlap(argument: str) -> int:
    if argument.isascii() and argument.isdecimal() and len(argument) < 10 and int(argument) <= MAX_OVERLAP:
        return int(argument)
    raise argparse.ArgumentTypeError(f"expected 0 to {MAX_OVERLAP} seconds")


def _future(argument: str) -> datetime:
    with suppress(msgspec.ValidationError):
        time = msgspec.convert(argument, datetime)
        if time.tzinfo is not None and time > datetime.now(UTC):
            return time
    raise argparse.ArgumentTypeError("expected a time in the future with its offset, such as 2027-01-31T12:00:00Z")


def make(
    settings: Settings,
    url: str,
    *,
    user_id: str,
    name: str | None,
    permissions: list[str],
    expires_at: datetime | None = None,
) -> "MadeKey":
    """Makes a key for a user and gives it with its token, which nobody can see again."""
    new = keys.generate(settings.key_environment)

    async def create(session: Session) -> ApiKey:
        return await api_keys.create(
            session,
            user_id=user_id,
            key_id=new.key_id,
            hashed_key=await _hash(settings, new),
            name=name,
            prefix=new.prefix,
            permissions=permissions,
            expires_at=expires_at,
            rate_limit=None,
        )

    return MadeKey(token=new.token, row=_as_user(settings, url, user_id, create))


async def _hash(settings: Settings, new: keys.NewKey) -> str:
    hasher = Hasher(settings)
    try:
        return await hasher.hash(new.secret)
    finally:
        hasher.close()


class MadeKey(msgspec.Struct, frozen=True):
    """A key just made."""

    token: str
    row: ApiKey


def has_any(settings: Settings, url: str, user_id: str) -> bool:
    """Whether a user has a key, active or not."""
    return bool(_newest(settings, url, user_id, 1))


def _newest(settings: Settings, url: str, user_id: str, take: int) -> list[ApiKey]:
    async def ask(session: Session) -> list[ApiKey]:
        latest = datetime.max.replace(tzinfo=UTC)
        return await api_keys.list_for_user(session, user_id=user_id, before=latest, before_id="", take=take, skip=0)

    return _as_user(settings, url, user_id, ask)


def _as_user(settings: Settings, url: str, user_id: str, work: Callable[[Session], Awaitable[T]]) -> T:
    """Runs something as a user, under the same row-level security as a request of theirs."""

    async def run() -> T:
        async with connected(settings, url, "crafely_app") as database:
            return await work(database.session("crafely_app", Identity(user_id, request_id="crafely keys")))

    return asyncio.run(run())


def _create(arguments: argparse.Namespace) -> int:
    settings = load()
    permissions = [EVERYTHING, ADMIN] if arguments.admin else []
    permissions = list(dict.fromkeys(permissions + (arguments.permissions or []))) or [EVERYTHING]
    if len(permissions) > MAX_COUNT:
        return _refused(f"--permission: at most {MAX_COUNT} names", code=2)
    with target(settings) as found:
        require_schema(found)
        made = make(
            settings,
            found.url,
            user_id=arguments.user,
            name=arguments.name,
            permissions=permissions,
            expires_at=arguments.expires_at,
        )
    return _show(arguments, made)


def _show(arguments: argparse.Namespace, made: MadeKey) -> int:
    if arguments.json:
        print(_json({**msgspec.to_builtins(made.row), "key": made.token, "userId": arguments.user}))
    else:
        # Only the key on standard output, so that KEY=$(crafely keys create) works.
        print(made.token)
        print(f"{made.row.id} of user {arguments.user}; the key is shown this once", file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    settings = load()
    with target(settings) as found:
        require_schema(found)
        rows = _newest(settings, found.url, arguments.user, MAX_LISTED + 1)
    if arguments.json:
        print(_json(rows[:MAX_LISTED]))
        return 0
    table = Table("id", "name", "permissions", "state", "last used", "created", box=box.SIMPLE_HEAD)
    # Broken in two, it could not be pasted behind `crafely keys revoke`.
    table.columns[0].no_wrap, table.columns[0].min_width = True, len(rows[0].id) if rows else None
    for key in rows[:MAX_LISTED]:
        table.add_row(
            key.id,
            escape(key.name or ""),
            " ".join(key.permissions),
            _state(key),
            _when(key.last_used_at),
            _when(key.created_at),
        )
    show(table)
    if len(rows) > MAX_LISTED:
        print(f"only the newest {MAX_LISTED} are shown", file=sys.stderr)
    return 0


def _rotate(arguments: argparse.Namespace) -> int:
    settings = load()
    new = keys.generate(settings.key_environment)

    async def rotate(session: Session) -> ApiKey | str:
        old = await api_keys.get(session, id=arguments.id, user_id=arguments.user)
        if old is None:
            return f"user {arguments.user} has no key {arguments.id}"
        try:
            row = await api_keys.rotate(
                session,
                id=old.id,
                user_id=arguments.user,
                permissions=old.permissions,
                overlap_seconds=arguments.overlap_seconds,
                key_id=new.key_id,
                hashed_key=await _hash(settings, new),
                prefix=new.prefix,
            )
        except psycopg.errors.UniqueViolation:
            return f"{old.id} has been replaced before: rotate the key that did"
        return row or f"{old.id} is not active any more"

    with target(settings) as found:
        require_schema(found)
        row = _as_user(settings, found.url, arguments.user, rotate)
    return _refused(row) if isinstance(row, str) else _show(arguments, MadeKey(token=new.token, row=row))


def _revoke(arguments: argparse.Namespace) -> int:
    settings = load()
    id_, user_id = arguments.id, arguments.user

    async def revoke(session: Session) -> bool:
        async with session.transaction() as transaction:
            if await api_keys.revoke(transaction, id=id_, user_id=user_id) is None:
                return False
            if arguments.family:
                await revoke_family(transaction, id=id_, user_id=user_id)
            return True

    with target(settings) as found:
        require_schema(found)
        if not _as_user(settings, found.url, user_id, revoke):
            return _refused(f"user {user_id} has no key {id_}")
    print(_json({"id": id_, "active": False}) if arguments.json else f"{id_} is revoked")
    return 0


def _refused(line: str, code: int = 1) -> int:
    print(f"crafely: {line}", file=sys.stderr)
    return code


def _state(key: ApiKey) -> str:
    if not key.active:
        return "revoked"
    if key.expires_at is None:
        return "active"
    return f"{'until' if key.expires_at > datetime.now(UTC) else 'expired'} {_when(key.expires_at)}"


def _when(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M") if time else "–"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
