"""The standby that reads may be answered by: from the settings to the metrics and the desk."""

from prometheus_client import Counter, Gauge

from crafely.api import telemetry
from crafely.api.monitor_desk import ReplicaUse
from crafely.config import Settings
from crafely.db.coalesce import Coalescer
from crafely.db.query import Executor
from crafely.db.replica import Replica
from crafely.db.session import Database
from crafely.store import monitor

# The most statements that one look at the primary's log serves, and the most that wait for one.
BATCH, QUEUE = 1024, 10_000

_lag = Gauge(
    "crafely_replica_lag_seconds",
    "For how long the primary has had what the standby has not replayed.",
    registry=telemetry.REGISTRY,
    multiprocess_mode="livemax",
)
_left_alone = Gauge(
    "crafely_replica_left_alone",
    "Processes that leave the standby alone.",
    registry=telemetry.REGISTRY,
    multiprocess_mode="livesum",
)
_reads = Counter(
    "crafely_replica_reads",
    "Statements that a standby may answer, by who did.",
    ("answered_by",),
    registry=telemetry.REGISTRY,
)


class Standby:
    """The standby of CRAFELY_REPLICA_URL, and what asks the primary for it; where there is none, nothing."""

    def __init__(self, settings: Settings, database: Database) -> None:
        """Takes the settings and the database that is written to. Raises DatabaseUnavailableError as Replica does."""
        self._replica: Replica | None = None
        self._database = database
        self._counted = {"standby": 0, "primary": 0}
        if settings.replica_url is None:
            return
        self._positions = Coalescer(
            _positions,
            [database.channel("crafely_auth")],
            batch=BATCH,
            queue=QUEUE,
            seconds=database.pool_timeout,
            repeatable=True,
        )
        self._replica = Replica(
            settings.replica_url,
            database,
            position=lambda: self._positions.ask(None),
            lag=settings.replica_lag,
            size=settings.pool_size,
            statement_timeout=settings.statement_timeout,
            observe=telemetry.observe_statement,
        )

    async def open(self) -> None:
        """Begins to use it. Raises psycopg.Error where the primary cannot be reached."""
        if self._replica is not None:
            await self._positions.open()
            await self._replica.open()
            self._database.standby = self._replica

    async def close(self) -> None:
        """Gives back its connections."""
        if self._replica is not None:
            await self._replica.close()
            await self._positions.close()

    def use(self) -> ReplicaUse | None:
        """What the desk says of it; None where there is none."""
        if self._replica is None:
            return None
        return ReplicaUse(lag_seconds=self._replica.lag, problem=self._replica.reason or None)

    def pool_stats(self) -> dict[str, dict[str, int]]:
        """What psycopg_pool's get_stats() gives for each role's pool there."""
        pools = self._replica.pools if self._replica is not None else {}
        return {f"{role} replica": pool.get_stats() for role, pool in pools.items()}

    def observe(self) -> None:
        """Shows it in the metrics as it is now, and counts what was read since it was shown last."""
        if self._replica is None:
            return
        _lag.set(self._replica.lag)
        _left_alone.set(bool(self._replica.reason))
        for who, total in (("standby", self._replica.answered), ("primary", self._replica.passed)):
            _reads.labels(who).inc(total - self._counted[who])
            self._counted[who] = total
        telemetry.observe_coalescer("monitor/position", self._positions)


async def _positions(db: Executor, asked: list[None]) -> list[int]:
    return [(await monitor.position(db)).bytes] * len(asked)
