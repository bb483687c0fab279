"""How a transaction begins: as which role, under which limits, and for whom.

Whatever runs statements asks here, so that all of it can stand elsewhere where the connection is not ours alone.
"""

from typing import Any, ClassVar

import msgspec
from psycopg import AsyncRawCursor

from crafely.db.connection import Connection

_SET_IDENTITY = (
    b"select set_config('crafely.user_id', $1, true), set_config('crafely.api_key_id', $2, true),"
    b" set_config('crafely.request_id', $3, true)"
)


class Identity(msgspec.Struct, frozen=True):
    """Who a statement runs for. Row-level security reads the user, the audit trail reads all three."""

    user_id: str
    api_key_id: str = ""
    request_id: str = ""


NOBODY = Identity(user_id="")


class Begin:
    """How transactions of a role begin where a connection is one of the server's own.

    The role and the limits stand on the connection, and are what RESET goes back to; a transaction says for whom it is.
    """

    # Whether a transaction for nobody says something, too.
    always = False
    # What an engine wants set besides (citus.py).
    more: ClassVar[dict[str, str]] = {}

    def __init__(self, role: str, seconds: float) -> None:
        """Takes the role, and how many seconds one of its statements may run."""
        milliseconds = int(seconds * 1000)
        self.settings = {
            "role": role,
            "statement_timeout": str(milliseconds),
            "idle_in_transaction_session_timeout": str(milliseconds),
            "lock_timeout": str(milliseconds // 2),
            "timezone": "UTC",
            # Compiling a plan costs more than any of these short statements.
            "jit": "off",
            # One plan a statement, made once and looked at by whoever reviews it. Left to itself the server plans anew,
            # each time, whatever it believes to be cheaper for the very values: 50 µs of a lookup's 25.
            "plan_cache_mode": "force_generic_plan",
            **self.more,
        }

    def connection(self, options: str) -> dict[str, Any]:
        """What psycopg connects with, besides where to: takes the ``options`` that the URL has, or nothing."""
        return {"options": " ".join([options, *(f"-c {name}={value}" for name, value in self.settings.items())])}

    async def send(self, connection: Connection, identity: Identity) -> None:
        """Sends what a transaction begins with, in a pipeline: no round trip of its own."""
        values = (identity.user_id, identity.api_key_id, identity.request_id)
        await AsyncRawCursor(connection).execute(_SET_IDENTITY, values, prepare=True)


class PooledBegin(Begin):
    """How they begin behind a transaction pooler, which gives each of them another connection to the server.

    Such a connection carries nothing from one client to the next, so each transaction says everything itself. Nor is
    anything prepared: the next transaction would not find it.
    """

    always = True

    def __init__(self, role: str, seconds: float) -> None:
        """Takes what Begin takes."""
        super().__init__(role, seconds)
        names = [*self.settings, "crafely.user_id", "crafely.api_key_id", "crafely.request_id"]
        calls = (f"set_config('{name}', ${number}, true)" for number, name in enumerate(names, 1))
        self.statement = f"select {', '.join(calls)}".encode()

    def connection(self, options: str) -> dict[str, Any]:
        """What psycopg connects with: of the options, the URL's own, which a pooler may not like."""
        return {"prepare_threshold": None, **({"options": options} if options else {})}

    def values(self, identity: Identity) -> tuple[str, ...]:
        """The parameters of the statement for somebody."""
        return (*self.settings.values(), identity.user_id, identity.api_key_id, identity.request_id)

    async def send(self, connection: Connection, identity: Identity) -> None:
        """Sends what a transaction begins with, in a pipeline: no round trip of its own."""
        await AsyncRawCursor(connection).execute(self.statement, self.values(identity))
