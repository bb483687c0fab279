"""Who is calling, and what they may do: from a token to a Caller.

Nothing here knows the database but lookups.py: the Verifier and the Authenticator are handed the functions they need.
"""

from collections.abc import Callable, Container

from crafely.auth import keys
from crafely.auth.clerk import Clerk, InvalidToken
from crafely.auth.key_cache import Caller, Entry, KeyCache, KeyRecord
from crafely.auth.permissions import ADMIN, EVERYTHING
from crafely.auth.verifier import Verifier

__all__ = ["Authenticator", "Caller", "Denied", "Entry", "KeyCache", "KeyRecord", "Verifier"]

Seen = Callable[[str], None]

_REASONS = {
    "MALFORMED": "the token is neither an API key nor a session token",
    "NOT_FOUND": "there is no such API key",
    "REVOKED": "the API key has been revoked",
    "EXPIRED": "the token has expired",
    "NOT_CONFIGURED": "session tokens are not accepted here; use an API key",
    "WRONG_ALGORITHM": "the session token is not signed with RS256",
    "UNKNOWN_KEY": "the session token is signed with a key that the issuer does not have",
    "BAD_SIGNATURE": "the session token's signature is wrong",
    "MISSING_CLAIM": "the session token lacks one of iss, sub, sid, exp, nbf, iat",
    "NOT_YET_VALID": "the session token is not valid yet",
    "WRONG_ISSUER": "the session token is from another issuer",
    "WRONG_PARTY": "the session token was made for another site",
    "PENDING": "the session has tasks left; finish signing in",
}


_PROVEN = frozenset({"REVOKED", "EXPIRED", "NOT_YET_VALID", "WRONG_PARTY", "PENDING"})


class Denied(Exception):  # noqa: N818 - an answer to the caller, not a failure of ours
    """The token is refused: HTTP 401. `code` is a word for programs, str() a sentence for people."""

    def __init__(self, code: str) -> None:
        super().__init__(_REASONS[code])
        self.code = code
        # Whether its holder has shown the secret or the signature: then it was no guess.
        self.proven = code in _PROVEN


class Authenticator:
    """Turns tokens into callers.

    Takes the verifier of API keys and Clerk (its owner closes it), the Clerk user ids that are admins, and `seen`,
    which notes that the key with this row id was used, at once and without I/O.
    """

    def __init__(self, verifier: Verifier, clerk: Clerk, *, admins: Container[str], seen: Seen) -> None:
        self._verifier = verifier
        self._recall = verifier.recall
        self._clerk = clerk
        self._admins = admins
        self._seen = seen

    def known(self, token: str) -> Caller | None:
        """The caller behind an API key that is good and in the cache; None where `authenticate` has to look."""
        entry = self._recall(token)
        if entry is None or entry.caller is None or entry.code() != "VALID":
            return None
        self._seen(entry.caller.api_key_id or "")
        return entry.caller

    async def authenticate(self, token: str) -> Caller:
        """The caller behind `token`, an API key or a Clerk session token; its beginning decides which.

        Raises Denied; Busy (crafely.auth.hashing) and Unavailable (crafely.auth.clerk) when nobody can say now; and
        what looking a key up raises. A wrong secret is NOT_FOUND: only who holds the key learns that it exists, or
        that it has ended.
        """
        if token.startswith(keys.PREFIX):
            entry = await self._verifier.examine(token)
            code = entry.code() if entry is not None else "MALFORMED"
            if entry is None or entry.caller is None or code != "VALID":
                raise Denied(code)
            self._seen(entry.caller.api_key_id or "")
            return entry.caller
        try:
            session = await self._clerk.verify(token)
        except InvalidToken as error:
            raise Denied(error.code.upper()) from error
        permissions = {EVERYTHING, ADMIN} if session.user_id in self._admins else {EVERYTHING}
        return Caller(user_id=session.user_id, permissions=frozenset(permissions), session_id=session.session_id)
