"""Settings: one frozen Struct, read once from the environment.

Every variable starts with ``CRAFELY_``. A name that nobody reads is refused, so that a typing error in a deployment
is found at start-up and not after an incident.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from crafely import keyring
from crafely.keyring import Keyring

PREFIX = "CRAFELY_"


class SettingsError(ValueError):
    """A variable that cannot be used. The message names the variable and the rule, never the value of a secret."""


Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1, le=1024)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
Urls = tuple[str, ...]
# Requests a minute.
Rate = Annotated[int, Meta(ge=1, le=1_000_000_000)] | Literal["off"]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process is told by its environment. The field ``pool_size`` is the variable ``CRAFELY_POOL_SIZE``."""

    # The database. None: the embedded PostgreSQL in data_dir.
    database_url: str | None = None
    # What it is: a PostgreSQL, or one whose usage Citus spreads over servers (sql/scale/citus.sql).
    engine: Literal["postgresql", "citus"] = "postgresql"
    # A transaction pooler before that database: what serves goes through it, and what needs a session goes past it.
    pooler_url: str | None = None
    # A standby of it, or several, for what may be read there, and how many seconds it may be behind before it is left
    # alone. None: everything is read from the database itself.
    replica_url: str | None = None
    replica_lag: Seconds = 5
    data_dir: Path = Path(".crafely")
    # The folder with postgres, initdb and pg_ctl for the embedded server. None: the wheel's.
    postgres_bin: Path | None = None
    # Connections of the pool that serves users; the other roles take a fraction.
    pool_size: Count = 10
    # How long a request waits for a connection, and how long one statement may run, in seconds.
    pool_timeout: Seconds = 5
    statement_timeout: Seconds = 10

    # What seals agents' and threads' texts, and backups. None: the embedded database's own key, in data_dir; for any
    # other database they must be said. A Keyring shows no key, so neither do settings.
    encryption_keys: Keyring | None = None

    # Backups. None: none is made by itself. So many hours are between two, and so many of them are kept.
    backup_dir: Path | None = None
    backup_hours: Annotated[float, Meta(gt=0, le=24 * 366)] = 24
    backup_keep: Annotated[int, Meta(ge=1, le=10_000)] = 14

    # HTTP.
    host: str = "127.0.0.1"
    port: Port = 8000
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    max_body_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    request_timeout: Seconds = 30
    # Open connections of one process; beyond that the one that has been idle for longest is closed for the next.
    max_connections: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    shutdown_grace: Seconds = 20
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # API keys: the word after crf_, and argon2id's cost. 8 MiB and one pass take about 5 ms; a random 190-bit
    # secret needs no more (it cannot be guessed, only stolen).
    key_environment: Annotated[str, Meta(pattern=r"^[a-z]{2,8}(?!\n)$")] = "live"
    argon2_time_cost: Annotated[int, Meta(ge=1, le=100)] = 1
    argon2_memory_kib: Annotated[int, Meta(ge=8, le=4 * 1024 * 1024)] = 8 * 1024
    argon2_parallelism: Annotated[int, Meta(ge=1, le=64)] = 1
    # Hashes at once (threads), and how many may wait before a request is told to come back. Half of the processors: the
    # other half is there for the requests that need no hash.
    argon2_threads: Annotated[int, Meta(ge=1, le=64)] = max(1, (os.cpu_count() or 2) // 2)
    argon2_queue: Annotated[int, Meta(ge=1, le=100_000)] = 256

    # Keys that were verified lately: how many are remembered, and for how many seconds a row is believed at most,
    # although the database tells of every change; 0 reads the row each time.
    key_cache_size: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    key_cache_seconds: Annotated[float, Meta(ge=0, le=3600)] = 60
    # Callers that may wait for a coalesced lookup, and for a coalesced usage record, before they are told to come back.
    lookup_queue: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    usage_queue: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000

    # Requests a minute of a key without a limit of its own. None: what its user's packages say, if they say anything.
    rate_limit: Rate | None = None
    # Of all keys and sessions of a user together, whose packages say nothing: a thousand a second is more than people
    # and their programs need, and a small part of what one worker does.
    rate_limit_user: Rate = 60_000
    # Failed attempts to authenticate from one address in a minute, before more are refused unseen.
    rate_limit_failures: Rate = 60
    # A Redis or Valkey that counts for all workers. None: each counts alone.
    rate_limit_storage: str | None = None
    # Networks of the proxies whose X-Forwarded-For is believed.
    trusted_proxies: tuple[str, ...] = ()
    # How long the answer to a request with an Idempotency-Key is kept at least.
    idempotency_hours: Annotated[float, Meta(gt=0, le=24 * 30)] = 24

    # Whole months of the audit trail that are kept besides the current one. None: all, for ever.
    audit_months: Annotated[int, Meta(ge=2, le=1200)] | None = None
    # The same of usage, whose daily sums are kept for ever; and the folder that a month is written to before it goes.
    usage_months: Annotated[int, Meta(ge=2, le=1200)] | None = None
    usage_export_dir: Path | None = None

    # Clerk. Nothing set: session tokens are refused, API keys still work.
    clerk_issuer: str | None = None
    clerk_jwks_url: str | None = None
    clerk_pem: str | None = None
    clerk_authorized_parties: Urls = ()
    # Clerk user ids that hold the permission "admin" when they come with a session token.
    clerk_admins: tuple[str, ...] = ()


_RATES = {name for name, kind in Settings.__annotations__.items() if "'off'" in str(kind)}
_LISTS = {name for name, kind in Settings.__annotations__.items() if "tuple" in str(kind)}


def load(environ: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """The settings of this process.

    Takes the environment and, as keywords, what the command line said; None means that it said nothing. Lists are
    separated by commas. Raises SettingsError naming the variable and the rule it breaks.
    """
    values: dict[str, Any] = {}
    for name, text in environ.items():
        field = name.removeprefix(PREFIX).lower()
        # CRAFELY_TEST_… belongs to the test suite.
        if not name.startswith(PREFIX) or field.startswith("test_") or text == "":
            continue
        if field not in Settings.__struct_fields__:
            raise SettingsError(f"{name}: no such setting; the README's configuration table lists them all")
        values[field] = [part.strip() for part in text.split(",") if part.strip()] if field in _LISTS else text
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        settings = msgspec.convert(values, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        rule, _, path = str(error).partition(" - at `$.")
        if path.rstrip("`") in _RATES:
            # A number or a word: msgspec's own sentence would name neither.
            rule = "expected requests a minute, a whole number from 1 to 1000000000, or off"
        raise SettingsError(f"{PREFIX}{path.rstrip('`').upper()}: {rule}") from None
    if settings.pooler_url is not None and settings.database_url is None:
        raise SettingsError("CRAFELY_POOLER_URL: CRAFELY_DATABASE_URL has to name the server behind it")
    return settings


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    if kind is Keyring:
        # Its errors are ValueErrors, which msgspec takes for its own.
        return keyring.parse(value)
    raise NotImplementedError(f"no decoder for {kind}")
