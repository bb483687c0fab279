"""Several servers in one URL: libpq asks one after another for the one that writes, and so finds a new primary.

What it does not do is remember. A machine that is off answers nothing, and where it is named first each new connection
would wait for ``connect_timeout`` before the next one is asked; so whoever connects often keeps a ``Hosts``.
Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
"""

import re

from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGconn

from crafely.db.tls import said

# What libpq may be told to look for so that statements can write.
_WRITES = ("primary", "read-write")
_PARTS = ("host", "hostaddr", "port")
# How psycopg begins what each of several servers has said.
_SERVER = re.compile(r"^- host: .*?, port: .*?, hostaddr: (?:None|'.*?'): ")


class Hosts:
    """Where to connect: first to the server that was found to write last."""

    def __init__(self, url: str) -> None:
        """Takes a libpq URL. Raises psycopg.ProgrammingError for what libpq does not understand."""
        # Read for every connection.
        self.url = url
        given = said(url)
        lists = {name: given[name].split(",") for name in _PARTS if name in given}
        count = max(map(len, lists.values()), default=1)
        self._names = tuple(lists)
        # One port may stand for all.
        self._servers = list(zip(*(values * (count // len(values)) for values in lists.values()), strict=False))
        # An order of standbys, by distance or by chance, is the operator's.
        self._settled = count == 1 or given.get("target_session_attrs") not in _WRITES

    def found(self, pgconn: PGconn) -> None:
        """Notes where a connection has led to."""
        if self._settled or self._is(self._servers[0], pgconn):
            return
        # None, where the connection is older than the URL: nothing changes.
        self._servers.sort(key=lambda server: not self._is(server, pgconn))
        order = dict(zip(self._names, map(",".join, zip(*self._servers, strict=True)), strict=True))
        self.url = make_conninfo(self.url, **order)

    def _is(self, server: tuple[str, ...], pgconn: PGconn) -> bool:
        """What is left out in the URL is libpq's default, and tells nothing apart."""
        there = {"host": pgconn.host, "hostaddr": pgconn.hostaddr, "port": pgconn.port}
        return all(value in {"", there[name].decode()} for name, value in zip(self._names, server, strict=True))


def undecided(url: str) -> bool:
    """Whether a URL names several servers, and nothing says that the one is meant which writes."""
    given = said(url)
    several = any("," in given.get(name, "") for name in ("host", "hostaddr"))
    return several and given.get("target_session_attrs") not in _WRITES


def reasons(error: Exception) -> str:
    """Why no connection was made, in one line; of several servers, what each has said.

    libpq says the last thing it tried last; what it has to advise stands under it, behind a tab.
    """
    _, several, each = str(error).partition("All failures were:\n")
    lines = [line.strip() for line in (each or str(error)).splitlines() if line.strip() and not line.startswith("\t")]
    if several:
        return "; ".join(_SERVER.sub("", line) for line in lines)
    return lines[-1] if lines else type(error).__name__
