"""What a process serves with: settings, database, authentication; and what needs closing at the end."""

import asyncio
import copy
import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from time import time
from types import MappingProxyType
from typing import Any

import msgspec
import psycopg
from aiohttp import web

from crafely.api import encryption_keys, monitor_desk, telemetry
from crafely.api.addresses import Addresses
from crafely.api.backups import Backups
from crafely.api.monitor_metrics import Metrics
from crafely.api.problems import Problem
from crafely.api.recorder import recorder
from crafely.api.replica import Standby
from crafely.api.retention import Retention
from crafely.api.wire import Call, Caller, current_request
from crafely.auth import Authenticator, Denied, KeyCache, KeyRecord, Verifier
from crafely.auth.clerk import Clerk
from crafely.auth.hashing import Hasher
from crafely.auth.lookups import lookups, package_limits
from crafely.auth.rate_limits import RateLimits
from crafely.config import Settings
from crafely.db import migrate
from crafely.db.citus import ENGINES
from crafely.db.listen import Listener
from crafely.db.query import WrongRoleError
from crafely.db.session import Database, DatabaseUnavailableError, Identity, Session, unavailable
from crafely.db.transaction import Part
from crafely.keyring import KeyringError
from crafely.store import api_keys, audit_log, idempotency_keys, monitor, usage, user_subscriptions

log = logging.getLogger(__name__)

# How long an event id is remembered, so that a retry is recognised: longer than the 35 days that usage may be late.
EVENT_WINDOW = timedelta(days=40)
# Months of partitions made ahead.
MONTHS_AHEAD = 3
# How long samples of sizes are kept, and of how many relations: the largest. A trend needs some weeks, no more.
SAMPLE_WINDOW = timedelta(days=35)
SAMPLED = 1000
# Who changes rows where no request does: the trail shows it.
HOUSEKEEPING = Identity("", request_id="crafely housekeeping")
# Answers that are forgotten at a time.
FORGOTTEN = 1000
# The most keys whose last use waits to be written; more than that are noted at their next use.
MAX_TOUCHES = 100_000


class Services:
    """What handlers work with. One for each process, on one event loop."""

    def __init__(self, settings: Settings, url: str, openapi: bytes) -> None:
        """Takes the settings, a libpq URL, and the document that /openapi.json answers. Connects to nothing yet.

        Raises KeyringError where the settings have no keys: nothing is stored in clear unless that was said.
        """
        if settings.encryption_keys is None:
            raise KeyringError("CRAFELY_ENCRYPTION_KEYS: not set")
        # What seals and opens texts. This process's own, for what it believes is what this database says.
        self.keyring = copy.copy(settings.encryption_keys)
        self.settings = settings
        self._url = url
        self.openapi = openapi
        self.database = ENGINES[settings.engine](
            url,
            size=settings.pool_size,
            pool_timeout=settings.pool_timeout,
            statement_timeout=settings.statement_timeout,
            observe=telemetry.observe_statement,
            pooler=settings.pooler_url,
        )
        self.standby = Standby(settings, self.database)
        # crafely_monitor's connections, for those who ask for the desk.
        self._desk: Database | None = None
        self._desk_lock = asyncio.Lock()
        self._desk_lacks = ""
        self.metrics = Metrics()
        self.backups = Backups(settings)
        self.retention = Retention(settings, self._housekeeping, self._drop_usage_month)
        self.hasher = Hasher(settings)
        self._clerk = Clerk(settings)
        # When keys were last used, by row id, in seconds since 1970, until it is written.
        self._touched: dict[str, float] = {}
        self._expected = migrate.expected()
        self.lookups = lookups(self.database, queue=settings.lookup_queue)
        self.recorder = recorder(self.database, queue=settings.usage_queue, engine=settings.engine)
        self.key_cache = KeyCache(size=settings.key_cache_size, seconds=settings.key_cache_seconds)
        self._listener = Listener(
            lambda: self.database.connect("crafely_auth"),
            "crafely_api_keys",
            heard=self.forget_key,
            up=self.key_cache.trust,
            down=self.key_cache.distrust,
        )
        self.verifier = Verifier(self.hasher, self.key_cache, lookup=self.lookups.ask, rehash=self._rehash)
        self._authenticator = Authenticator(
            self.verifier, self._clerk, admins=frozenset(settings.clerk_admins), seen=self.seen
        )
        self.known = self._authenticator.known
        self.package_limits = package_limits(self.database, queue=settings.lookup_queue)
        self.rate_limits = RateLimits(settings, package_limit=self.package_limits.ask)
        self.admit = self.rate_limits.admit
        self._addresses = Addresses(settings.trusted_proxies)

    async def open(self) -> None:
        """Connects. Raises DatabaseUnavailableError, WrongRoleError or KeyringError with one line that says why."""
        await self.database.open()
        try:
            await self.check_keys()
            await self.lookups.open()
            await self.package_limits.open()
            await self.recorder.open()
            await self._listener.open()
            await self.standby.open()
        except psycopg.Error as error:
            raise DatabaseUnavailableError(unavailable(self._url, error)) from None

    async def authenticate(self, token: str, request: web.BaseRequest) -> Caller:
        """The caller behind a request's token. Raises what Authenticator.authenticate does, and Exceeded.

        An address from which too many attempts have failed gets no further lookup, hash or signature, but for keys
        whose secret is known to be right. Who has held a key or a session does not guess: its end is no failure.
        """
        # Parsing the address takes a tenth of the request, and who is known needs none.
        if not self.verifier.tried(token):
            await self.rate_limits.attempt(self._addresses.of(request))
        try:
            return await self._authenticator.authenticate(token)
        except Denied as denied:
            if not denied.proven:
                await self.rate_limits.failed(self._addresses.of(request))
            raise

    def session(self, call: Call, role: str = "crafely_app") -> Session | Part:
        """A session for the caller of a request: what row-level security and the audit trail see.

        Where the request is one transaction, a part of that.
        """
        if call.transaction is not None:
            return Part(call.transaction, role)
        caller: Caller = call.caller
        return self.database.session(role, Identity(caller.user_id, caller.api_key_id or "", call.request_id))

    async def desk(self) -> Session:
        """A session of crafely_monitor. Its connections are made when it is first asked for, two at most.

        Raises Problem, with the reason, where there can be none: the login may lack the role.
        """
        async with self._desk_lock:
            if self._desk is None:
                desk = ENGINES[self.settings.engine](
                    self._url,
                    size=2,
                    pool_timeout=self.settings.pool_timeout,
                    statement_timeout=self.settings.statement_timeout,
                    roles=("crafely_monitor",),
                    observe=telemetry.observe_statement,
                    pooler=self.settings.pooler_url,
                )
                try:
                    await desk.open()
                except (DatabaseUnavailableError, WrongRoleError) as error:
                    await desk.close()
                    raise Problem("unavailable", f"The database tells nothing of itself: {error}.") from None
                except BaseException:
                    await desk.close()
                    raise
                self._desk = desk
            return self._desk.session("crafely_monitor")

    def pool_stats(self) -> Mapping[str, Mapping[str, int]]:
        """What psycopg_pool's get_stats() gives for each role's pool."""
        pools = {**self.database.pools, **(self._desk.pools if self._desk is not None else {})}
        return {role: pool.get_stats() for role, pool in pools.items()} | self.standby.pool_stats()

    def room(self) -> int | None:
        """The bytes that are free on the disk of an embedded database; None for another."""
        return monitor_desk.room_of(self.settings)

    async def look(self, desk: Session) -> monitor_desk.Desk:
        """All that the desk shows. Takes what desk() gives."""
        backup, replica = self.backups.use(), self.standby.use()
        return await monitor_desk.look(desk, room=self.room(), pools=self.pool_stats(), backup=backup, replica=replica)

    async def not_ready(self) -> str | None:
        """Why this process cannot serve, in a sentence; None when it can: database reached, migrations current."""
        try:
            applied = await monitor.migrations(self.database.session("crafely_admin"))
        except psycopg.errors.UndefinedTable:
            return "the database has no schema yet: run crafely migrate up"
        except (psycopg.Error, DatabaseUnavailableError):
            return "the database cannot be reached"
        if migrate.pending([(row.migration_id, row.migration_hash) for row in applied], self._expected):
            return "migrations of this release are missing: run crafely migrate up"
        return None

    def forget_key(self, key_id: str) -> None:
        """A key's row has changed: what was read of it before is not believed any more. No name: no row is."""
        if key_id:
            self.key_cache.evict(key_id)
        else:
            self.key_cache.flush()

    def forget_key_of(self, call: Call, key_id: str) -> None:
        """Forgets a key that a request has changed: now, or where the request is one transaction, when it is over."""
        if call.transaction is None:
            self.forget_key(key_id)
        else:
            call.transaction.after_commit.append(partial(self.forget_key, key_id))

    def seen(self, api_key_id: str) -> None:
        """Notes that the key with this row id is being used, to be written soon."""
        if len(self._touched) < MAX_TOUCHES:
            self._touched[api_key_id] = time()

    async def _rehash(self, record: KeyRecord, hashed_key: str) -> None:
        # Of several requests that wait for it, the first one.
        session = self.database.session("crafely_app", Identity(record.user_id, record.id, current_request.get()))
        await api_keys.rehash(session, id=record.id, user_id=record.user_id, hashed_key=hashed_key)

    async def flush_touches(self) -> None:
        """Writes when keys were last used, all in one statement."""
        touched, self._touched = self._touched, {}
        if touched:
            session = self.database.session("crafely_auth")
            # In one order everywhere, so that two workers wait for each other and never in a circle.
            ids = sorted(touched)
            try:
                await api_keys.touch(
                    session, ids=ids, used_at=[datetime.fromtimestamp(touched[id_], UTC) for id_ in ids]
                )
            except BaseException:
                # They wait for the next time; of a key used meanwhile, the later use counts.
                self._touched = {**touched, **self._touched}
                raise

    async def observe(self) -> None:
        """Shows this worker's pools, queues and cache in the metrics: the one that is scraped cannot see another's."""
        for role, stats in self.pool_stats().items():
            telemetry.observe_pool(role, stats)
        telemetry.observe_coalescer("api_keys/lookup", self.lookups)
        telemetry.observe_coalescer("user_subscriptions/rate_limits", self.package_limits)
        telemetry.observe_coalescer("usage/record", self.recorder)
        telemetry.observe_keys(self.key_cache, self._listener, self.hasher)
        telemetry.observe_rate_limits(self.rate_limits)
        self.standby.observe()

    async def check_keys(self) -> None:
        """Sees that the keys are the database's, and notes the one in use. Raises KeyringError with one line."""
        try:
            await encryption_keys.check(self._housekeeping(), self.keyring)
        except psycopg.errors.UndefinedTable:
            # There is no schema, and so nothing sealed; /readyz says it.
            log.warning("the database has no table of encryption keys yet")

    async def expire_subscriptions(self) -> None:
        """Applies the ends of subscriptions that have come."""
        if count := await user_subscriptions.expire(self._housekeeping()):
            log.info("subscriptions expired: %d", count)

    async def keep_usage(self) -> None:
        """Makes the months that are needed next and forgets event ids past their window."""
        session = self.database.session("crafely_admin")
        made = await monitor.ensure_partitions(session, months_ahead=MONTHS_AHEAD)
        if made.usage or made.audit_log:
            log.info("partitions made: usage %d, audit_log %d", made.usage, made.audit_log)
        await usage.forget_events(session, older_than=datetime.now(UTC) - EVENT_WINDOW)

    def _housekeeping(self) -> Session:
        return self.database.session("crafely_admin", HOUSEKEEPING)

    async def _drop_usage_month(self, month: date) -> bool | None:
        try:
            return await usage.drop_month(self._housekeeping(), month=month)
        except psycopg.errors.LockNotAvailable:
            return None

    async def forget_idempotency_keys(self) -> None:
        """Forgets answers that are past their window, some at a time, so that nobody waits for it."""
        session = self.database.session("crafely_admin")
        older_than = datetime.now(UTC) - timedelta(hours=self.settings.idempotency_hours)
        while await idempotency_keys.forget(session, older_than=older_than, take=FORGOTTEN) >= FORGOTTEN:
            pass

    async def sample_storage(self) -> None:
        """Notes how large everything is, once an hour, whoever of all workers comes first; forgets what is old."""
        session = self.database.session("crafely_admin")
        async with session.transaction() as transaction:
            # The turn is taken by a statement of its own: the next one then sees what its last holder has noted.
            taken = await monitor.take_turn(transaction) and await monitor.sample(transaction, take=SAMPLED)
        if taken:
            await monitor.forget_samples(session, older_than=datetime.now(UTC) - SAMPLE_WINDOW)

    async def seal_audit_log(self) -> None:
        """Seals what is complete of the audit trail, and drops the months that are no longer kept.

        The chain's head goes to the log: kept there, it tells of a chain that was recomputed.
        """
        session = self.database.session("crafely_admin")
        while (sealed := await audit_log.seal(session)).row_count:
            fields = {"rows": sealed.row_count, "seal": sealed.seal_id, "head": sealed.head}
            log.info("audit trail sealed", extra={"fields": fields})
        if self.settings.audit_months is not None:
            while month := await audit_log.drop_month(session, months_kept=self.settings.audit_months):
                log.info("month of the audit trail dropped: %s", f"{month:%Y-%m}")

    async def observe_database(self) -> None:
        """Shows what the database says of itself in the metrics, if this worker is the one to ask it."""
        if not self.metrics.turn():
            return
        try:
            desk = await self.desk()
        except Problem as problem:
            # Said once: a login without the role serves as well as before.
            if self._desk_lacks != problem.detail:
                log.warning("no metrics of the database: %s", problem.detail)
            self._desk_lacks = problem.detail or ""
            return
        self.metrics.keep(await self.look(desk))

    async def close(self) -> None:
        """Writes what waits, then gives back connections and threads."""
        try:
            await self.flush_touches()
        except psycopg.Error:
            log.warning("the last use of some keys was not written", exc_info=True)
        await self._clerk.close()
        await self._listener.close()
        await self.standby.close()
        await self.rate_limits.close()
        await self.package_limits.close()
        await self.lookups.close()
        await self.recorder.close()
        self.hasher.close()
        self.metrics.close()
        if self._desk is not None:
            await self._desk.close()
        await self.database.close()


def changes(body: msgspec.Struct, stored: Mapping[str, Any] = MappingProxyType({})) -> msgspec.Raw:
    """The fields that a PATCH sent, as a JSON object of columns; what was not sent is not in it.

    ``stored`` has the columns that are not stored as they were sent.
    """
    sent: dict[str, Any] = {
        name: value
        for name in body.__struct_fields__
        if (value := stored.get(name, getattr(body, name))) is not msgspec.UNSET
    }
    # PostgreSQL knows no offset of sixteen hours or more, which RFC 3339 allows.
    return msgspec.Raw(_encode({n: v.astimezone(UTC) if isinstance(v, datetime) else v for n, v in sent.items()}))


_encode = msgspec.json.Encoder(decimal_format="string").encode
