"""A statement by its name, as a person types it."""

from collections.abc import Sequence
from difflib import get_close_matches

from crafely.db import query
from crafely.db.query import Statement


class UsageError(ValueError):
    """Something in the arguments that does not fit: one line that says what would."""


def find(name: str) -> Statement:
    """The statement of this name. Raises UsageError naming the nearest ones."""
    # As a shell completes it, and as an error message names it.
    plain = name.removeprefix(f"{query.folder().name}/").removesuffix(f".{query.folder().name}")
    if plain in query.statements:
        return query.statements[plain]
    near = get_close_matches(plain, query.statements, n=3, cutoff=0.6)
    near += [one for one in sorted(query.statements) if one.endswith(f"/{plain}") and one not in near]
    raise UsageError(f"{name}: no such statement; {perhaps(near, 'they are named like threads/list_for_agent')}")


def perhaps(near: Sequence[str], otherwise: str) -> str:
    """What somebody may have meant, or else what to write."""
    return f"perhaps {', '.join(near)}" if near else otherwise
