"""The keys that texts are sealed with: what a process makes sure of before it reads or writes one."""

from crafely.db.session import Session
from crafely.keyring import OFF, Keyring, KeyringError, UnreadableError
from crafely.store import encryption_keys

# What every key has sealed once, so that another one of the same id is found out.
CHECK = "crafely"
_VARIABLE = "CRAFELY_ENCRYPTION_KEYS"


async def check(session: Session, ring: Keyring) -> None:
    """Compares a ring with the keys that the database knows, and notes that its first key is in use.

    Takes a session of crafely_admin or crafely_encryption. Raises KeyringError, with one line: a key in use is not in
    the ring, or is another one. From then on the ring takes a text in clear for one only where there may be some.
    """
    known = {key.id: key for key in await encryption_keys.list_all(session)}
    for key in known.values():
        if key.id in ring.ids:
            _compare(ring, key.id, key.check_value or "")
        elif key.id != OFF and key.retired_at is None:
            raise KeyringError(
                f"{_VARIABLE}: texts of this database are sealed with the key {key.id}, which is not among them"
            )
    writes = ring.writes or OFF
    if writes not in known or known[writes].retired_at is not None:
        value = None if ring.writes is None else ring.seal(CHECK, *_place(writes))
        await encryption_keys.register(session, id=writes, check_value=value)
        # Somebody else may have noted another key of this id in the same moment.
        await check(session, ring)
        return
    ring.reads_clear = OFF in known and known[OFF].retired_at is None


def _compare(ring: Keyring, id: str, check_value: str) -> None:
    try:
        ring.open(check_value, *_place(id))
    except UnreadableError:
        raise KeyringError(
            f"{_VARIABLE}: the key {id} is not the one of this id that this database's texts are sealed with"
        ) from None


def _place(id: str) -> tuple[str, str, str]:
    return "encryption_keys", "check_value", id
