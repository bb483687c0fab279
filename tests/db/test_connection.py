"""What a connection says to the server, byte for byte, and that it says all of it."""

import asyncio

import psycopg
import pytest

from crafely.db.session import Identity
from tests.db.statements import opened, run
from tests.db.test_session_pools import Turns

ALICE = Identity("alice")


class Messages(Turns):
    """Notes the kind of each message that a client without TLS sends, but for those that open the connection."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.kinds = ""
        self._rest = b""

    def heard(self, data: bytes) -> None:
        """Takes what the client has sent next."""
        data = self._rest + data
        # https://www.postgresql.org/docs/current/protocol-message-formats.html: only the first has no kind.
        while len(data) >= 5:
            kind, length = (b"", int.from_bytes(data[:4])) if data[0] == 0 else (data[:1], int.from_bytes(data[1:5]))
            if len(data) < len(kind) + length:
                break
            data = data[len(kind) + length :]
            self.kinds += kind.decode()
        self._rest = data


async def test_nothing_is_said_after_the_end_of_a_pipeline(database_url: str) -> None:
    # A pooler would take it for the beginning of the next transaction.
    messages = Messages(database_url)
    async with messages.between() as url, opened(url) as database:
        session = database.session("crafely_app", ALICE)
        for text in ("select 1", "select 2", "select 3"):
            messages.kinds = ""
            await run(session, text)
            assert messages.kinds.count("S") == 1
            assert messages.kinds.endswith("ES")

        messages.kinds = ""
        with pytest.raises(psycopg.errors.DivisionByZero):
            await run(session, "select 1 / 0")
        assert messages.kinds.endswith("ES")

        messages.kinds = ""
        async with session.transaction() as tx:
            await run(tx, "select 1")
            await run(tx, "select 2")
        assert messages.kinds.count("S") == 3
        assert messages.kinds.endswith("S")
        assert "H" not in messages.kinds


@pytest.mark.parametrize("kind", ["session", "transaction"])
async def test_a_statement_larger_than_any_buffer_is_sent_whole(database_url: str, kind: str) -> None:
    text = "é" * 8_000_000
    async with asyncio.timeout(60), opened(database_url, statement_timeout=30) as database:
        session = database.session("crafely_app", ALICE)
        query = "select length($1::text), md5($1::text) = md5(repeat('é', 8000000))"
        if kind == "session":
            assert await run(session, query, text) == [(8_000_000, True)]
        else:
            async with session.transaction() as tx:
                assert await run(tx, query, text) == [(8_000_000, True)]
                assert await run(tx, "select 1") == [(1,)]
