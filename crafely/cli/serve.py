"""``crafely serve``: everything that a new machine needs to answer requests."""

import argparse
import os
import resource
import shlex
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psycopg

from crafely import __version__
from crafely.cli import keys
from crafely.cli.encryption_keys import with_keys
from crafely.cli.listen import ListenError, listen
from crafely.cli.target import Target, require_schema, target
from crafely.config import Settings, SettingsError, load
from crafely.db import embedded, migrate


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command."""
    parser = commands.add_parser("serve", help="serve the API", description=__doc__)
    parser.add_argument("--host", help="address to listen on (CRAFELY_HOST, else 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (CRAFELY_PORT, else 8000)")
    parser.add_argument("--workers", type=int, help="processes (CRAFELY_WORKERS, else 1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until stopped."""
    settings = load(host=arguments.host, port=arguments.port, workers=arguments.workers)
    try:
        return _run(settings)
    except KeyboardInterrupt:
        # To be stopped is how serving ends, also while it starts: no error, and make prints none.
        return 0


def _run(settings: Settings) -> int:
    _allow_files(settings)
    with ExitStack() as stack:
        # Before anything is started: a taken port is the commonest mistake.
        sock = stack.enter_context(_listen(settings))
        address = _address(settings.host, sock.getsockname()[1])
        if settings.database_url is None:
            stack.enter_context(embedded.serving(settings.data_dir, address))
            _say(f"starting PostgreSQL in {settings.data_dir}/")
        found = stack.enter_context(target(settings))
        _prepare(settings, found)
        settings = with_keys(settings, found)
        if settings.workers > 1:
            # Each worker writes its metrics here, and /metrics adds them up; prometheus-client reads this on import.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="crafely-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder

        def ready() -> None:
            print(_banner(settings, found, address), flush=True)

        # Only now, because of the variable above; and a mistake before this line is told without loading HTTP.
        from crafely.api import server, telemetry, workers  # noqa: PLC0415 - see above

        telemetry.configure_logging(settings.log_level)
        serve = workers.serve if settings.workers > 1 else server.serve
        return serve(settings, found.url, sock, ready)


def _listen(settings: Settings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
    except ListenError as error:
        if settings.database_url is None and settings.data_dir.exists():
            # Who types the same command twice has taken the port himself: then this says so.
            with embedded.serving(settings.data_dir, "nowhere yet"):
                raise error from None
        raise


# Files that a process has open besides its clients' connections, and besides those to the database.
OTHER_FILES = 200


def _allow_files(settings: Settings) -> None:
    """Has the system allow as many open files as there may be connections: at its limit, nobody else would get in."""
    needed = settings.max_connections + 4 * settings.pool_size + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > hard != resource.RLIM_INFINITY:
        raise SettingsError(
            f"CRAFELY_MAX_CONNECTIONS: the system allows a process {hard} open files, and this takes {needed}: "
            "raise its limit (ulimit -Hn), or set fewer"
        )
    if needed > soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _prepare(settings: Settings, found: Target) -> None:
    """Brings the embedded database up to date, and makes the first admin key and prints it.

    Another database is the DBA's: its migrations are only looked at.
    """
    if not found.embedded:
        require_schema(found)
        return
    with psycopg.connect(found.url, autocommit=True) as connection:
        # The server has the library loaded; the view needs its extension in this database.
        connection.execute("set client_min_messages = error")
        connection.execute("create extension if not exists pg_stat_statements")
    migrate.up(found.url, on_progress=_say)
    if not keys.has_any(settings, found.url, keys.ADMIN_USER):
        made = keys.make(settings, found.url, user_id=keys.ADMIN_USER, name="first key", permissions=["*", "admin"])
        # At once: whatever fails after this, nobody could ever read it again.
        print(f"Your first key, an administrator's; it is shown this once:\n\n  KEY={made.token}\n", flush=True)


def _address(host: str, port: int) -> str:
    # A wildcard is no address that one can paste.
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - compared
    return f"http://{shown}:{port}"


def _banner(settings: Settings, found: Target, address: str) -> str:
    where = f"embedded PostgreSQL in {settings.data_dir}/" if found.embedded else "CRAFELY_DATABASE_URL"
    return "\n".join(
        [
            f"Crafely {__version__} answers.",
            "",
            f"  API       {address}",
            f"  Docs      {address}/docs",
            f"  Database  {found.pasteable}",
            f"            ({where})",
            f"  New key   KEY=$({_program(settings)} keys create --admin)",
            "",
            f'  Try       curl -s {address}/v1/me -H "Authorization: Bearer $KEY"',
            "",
            "Ctrl-C stops it.",
            "",
        ]
    )


def _program(settings: Settings) -> str:
    """This program as it can be typed in another terminal, for the same data."""
    name = shlex.quote(sys.argv[0]) if "/" in sys.argv[0] else "crafely"
    if Path(sys.argv[0]).name == "__main__.py":
        name = f"{shlex.quote(sys.executable)} -m crafely"
    if settings.database_url is None and settings.data_dir != Settings().data_dir:
        return f"CRAFELY_DATA_DIR={shlex.quote(str(settings.data_dir))} {name}"
    return name


def _say(line: str) -> None:
    print(line, file=sys.stderr)
