"""Whether a connection is encrypted. libpq does it where the server can, and goes on in the clear where it cannot.

That is right for a server on this machine, and wrong for any other: whoever stands in between would only have to say
that the server cannot. So ``secured`` asks for it where nobody has said anything.
"""

import ipaddress
import os
from contextlib import suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo, ConninfoOption


def secured(url: str) -> str:
    """What libpq takes, with ``sslmode=require`` where a server is remote and neither URL nor environment name a mode.

    Takes anything that libpq takes. Remote is what is neither a Unix socket nor localhost, 127.0.0.0/8 or ::1; of
    several servers one is enough. A mode that somebody names stays, also one that does not encrypt, and so does what
    ``sslrootcert=system`` means (verify-full). Raises psycopg.ProgrammingError for what libpq does not understand.
    Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-SSLMODE
    """
    given = said(url)
    if "sslmode" in given or given.get("sslrootcert") == "system":
        return url
    if not any(_is_remote(host.strip()) for name in ("host", "hostaddr") for host in given.get(name, "").split(",")):
        return url
    return make_conninfo(url, sslmode="require")


def said(url: str) -> dict[str, str]:
    """What a URL says, and where that says nothing, environment and service file. Raises as ``secured`` does."""
    given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    return {**_defaults(given.get("service")), **given}


def _defaults(service: str | None) -> dict[str, str]:
    """What environment and service file say of the options that nobody has given; libpq's own values are left out."""
    before = os.environ.get("PGSERVICE")
    if service is not None:
        # The only way to have libpq read the file of a service; it looks at the environment itself.
        os.environ["PGSERVICE"] = service
    try:
        options = Conninfo.get_defaults()
    finally:
        if service is not None:
            if before is None:
                del os.environ["PGSERVICE"]
            else:
                os.environ["PGSERVICE"] = before
    return {option.keyword.decode(): option.val.decode() for option in options if option.val and _is_said(option)}


def _is_said(option: ConninfoOption) -> bool:
    return option.val != option.compiled or bool(option.envvar and os.environ.get(option.envvar.decode()))


def _is_remote(host: str) -> bool:
    """Takes one of what libpq takes, with commas between them, as host or hostaddr."""
    if not host or host.startswith(("/", "@")) or host.lower() == "localhost":
        return False
    with suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    # Any other name may lead anywhere, whatever it leads to today.
    return True
