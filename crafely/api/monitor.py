"""Monitor: what the database says of itself, for its administrators. No row of any user."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from crafely.api import monitor_alerts, monitor_desk
from crafely.api.monitor_alerts import Alert
from crafely.api.monitor_desk import Activity, Indexes, Pool, Queries, Storage
from crafely.api.wire import Call, Query
from crafely.store import monitor


class QueriesQuery(Query, kw_only=True, frozen=True):
    """Which statements to list."""

    sort: Annotated[
        Literal["total", "mean", "calls"],
        Meta(description="The costliest in all, the slowest, or the most frequent ones first."),
    ] = "total"
    take: Annotated[int, Meta(ge=1, le=500, description="How many statements to list at most.")] = 20


class Alerts(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What needs somebody, what is critical first."""

    data: list[Alert]


async def queries(call: Call, query: QueriesQuery) -> Queries:
    """List the costliest statements.

    By the name of their SQL file, from pg_stat_statements. For administrators.
    """
    return await monitor_desk.queries(await call.services.desk(), sort=query.sort, take=query.take)


async def indexes(call: Call) -> Indexes:
    """List the indexes and their use.

    Unused, superfluous, bloated and invalid ones, and foreign keys that lack one. For administrators.
    """
    return await monitor_desk.indexes(await call.services.desk())


async def storage(call: Call) -> Storage:
    """Read the sizes of tables and partitions.

    And how fast they grow, by samples of each hour; how much was found in memory. For administrators.
    """
    desk = await call.services.desk()
    return await monitor_desk.storage(desk, await monitor.overview(desk), call.services.room())


async def pool(call: Call) -> Pool:
    """Read the pools and the connections.

    The pools are those of the worker that answers; connections are the whole server's. For administrators.
    """
    desk = await call.services.desk()
    return await monitor_desk.pool(desk, await monitor.overview(desk), call.services.pool_stats())


async def activity(call: Call) -> Activity:
    """Read what goes on at this moment.

    Open transactions, locks that are waited for, replicas. Of a statement only its file is told. For administrators.
    """
    return await monitor_desk.activity(await call.services.desk())


async def alerts(call: Call) -> Alerts:
    """List what needs somebody.

    Each with the action to take. For administrators.
    """
    services = call.services
    return Alerts(data=monitor_alerts.alerts(await services.look(await services.desk())))
