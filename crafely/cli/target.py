"""Which database a command works on: the one that CRAFELY_DATABASE_URL names, or the embedded one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crafely.config import Settings
from crafely.db import embedded


class Target(msgspec.Struct, frozen=True):
    """A database that is there: its libpq URL, and whether it is ours to change without asking."""

    url: str
    embedded: bool

    @property
    def shown(self) -> str:
        """The database for people: without a password, and ready to paste behind psql."""
        parts: dict[str, Any] = conninfo_to_dict(self.url)
        parts.pop("password", None)
        return make_conninfo(**parts)


@contextmanager
def target(settings: Settings) -> Iterator[Target]:
    """The database of these settings. The embedded server runs while the command does. Raises EmbeddedError."""
    if settings.database_url is not None:
        yield Target(settings.database_url, embedded=False)
        return
    with embedded.running(settings.data_dir, postgres_bin=settings.postgres_bin) as server:
        yield Target(server.url, embedded=True)
