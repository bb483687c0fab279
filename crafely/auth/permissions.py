"""What a caller may do: names, and the two questions asked about them.

A permission is a name such as ``agents:read``. The names in NAMES are the ones this program asks for; a key may carry
others of the customer's own (``documents:read``), which only ``/v1/api-keys/verify`` looks at. ``*`` stands for every
permission but the administrators': those must be named, so that a wildcard handed out in haste never opens the data of
others. ``admin`` stands for all of theirs: ``monitor:read`` alone is for a dashboard, ``usage:correct`` for whoever
takes usage back.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from msgspec import Meta

EVERYTHING = "*"
ADMIN = "admin"
MONITOR = "monitor:read"
CORRECT = "usage:correct"

NAMES = frozenset(
    {
        EVERYTHING,
        ADMIN,
        "keys:read",
        "keys:write",
        "keys:verify",
        "agents:read",
        "agents:write",
        "threads:read",
        "threads:write",
        "user-subscriptions:read",
        "user-subscriptions:write",
        "usage:read",
        "usage:write",
        CORRECT,
        # Nobody but an admin writes these three, so there is no name for it.
        "packages:read",
        "audit-log:read",
        MONITOR,
    }
)
# Not for users: every session token of theirs holds ``*``.
_ADMINISTRATORS = frozenset({ADMIN, MONITOR, CORRECT})

# Python's $ also matches before a last newline, JSON Schema's does not: the look-ahead makes both mean the end.
PATTERN = r"^(\*|[a-z][a-z0-9-]*(:[a-z][a-z0-9-]*)?)(?!\n)$"
MAX_LENGTH = 64
MAX_COUNT = 64

# For the Structs that read permissions from JSON. msgspec cannot refuse duplicates: ask duplicates().
Permission = Annotated[str, Meta(pattern=PATTERN, max_length=MAX_LENGTH)]
Permissions = Annotated[list[Permission], Meta(max_length=MAX_COUNT)]


def allows(held: frozenset[str], wanted: str) -> bool:
    """Whether the holder of `held` may do `wanted`: named, or covered by ``*`` (an administrator's: by ``admin``)."""
    return wanted in held or (ADMIN if wanted in _ADMINISTRATORS else EVERYTHING) in held


def excess(held: frozenset[str], wanted: Iterable[str]) -> list[str]:
    """The names in `wanted` that the holder of `held` may not hand out, in the order given; empty when all may go.

    Nobody gives more than they have: a name goes out if its holder is allowed it, ``*`` only from a holder of ``*``.
    """
    return [name for name in wanted if not allows(held, name)]


def duplicates(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, each listed once, in order of first appearance."""
    return [name for name, count in Counter(names).items() if count > 1]
