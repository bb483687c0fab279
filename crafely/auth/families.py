"""Keys that replaced each other: a family, which can end together."""

from crafely.db.transaction import Transaction
from crafely.store import api_keys

# The longest time that an old key and the one that replaces it are both good, in seconds: thirty days.
MAX_OVERLAP = 30 * 24 * 3600


async def revoke_family(transaction: Transaction, *, id: str, user_id: str) -> list[str]:
    """Revokes a key, all that it replaced and all that replaced it. Gives the public ids of those that were active.

    A rotation that was under way had locked the key that it replaces: after the wait, the next look finds the key that
    it made. Where nothing is found all is locked by this transaction, and no rotation can begin before its end.
    """
    revoked: list[str] = []
    while key_ids := await api_keys.revoke_family(transaction, id=id, user_id=user_id):
        revoked += key_ids
    return revoked
