-- sql/monitor/overview.sql
-- The database and its server in one row: size and growth, connections against their limits, how much is found in
-- memory, and how far the transaction counter is from the point where it stops all writers.
-- returns: one Overview
-- one row: because the statistics have one row of this database
-- role: crafely_monitor
-- uses: monitor_samples_pkey
-- not null: server_version, started_at, bytes, max_connections, blocks_read, deadlocks, spilled_bytes, multixact_age
-- not null: freeze_max_age
with sessions as (
    select
        count(*) as server_wide,
        count(*) filter (where datname = current_database()) as here
    from pg_stat_activity
    where backend_type = 'client backend'
),
blocks as (
    select
        sum(heap_blks_hit) / nullif(sum(heap_blks_hit + heap_blks_read), 0) as tables,
        sum(idx_blks_hit) / nullif(sum(idx_blks_hit + idx_blks_read), 0) as indexes
    from pg_statio_user_tables
),
growth as (
    select
        min(created_at) as since,
        -- A line through the samples; one day of them is too little to look ahead from, and less is nothing.
        case
            when max(created_at) - min(created_at) >= interval '1 day'
                then (regr_slope(bytes, extract(epoch from created_at)) * 86400)::bigint
        end as bytes_per_day
    from monitor_samples
    where kind = 'database'
        and name = current_database()
)
select
    d.datname::text as database,
    current_setting('server_version') as server_version,
    pg_postmaster_start_time() as started_at,
    s.stats_reset as counting_since,
    pg_database_size(d.oid) as bytes,
    -- «alter database … set crafely.storage_limit = '200 GB'»: what a server cannot know of its disk.
    case
        when current_setting('crafely.storage_limit', true) ~* '^\d+ ?(bytes|[kmgtp]b)?$'
            then pg_size_bytes(current_setting('crafely.storage_limit', true))
    end as limit_bytes,
    growth.bytes_per_day,
    growth.since as sampled_since,
    sessions.server_wide as connections,
    -- The rest is kept for superusers, and from PostgreSQL 16 on for whom they choose.
    current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true)::int, 0) as max_connections,
    sessions.here as database_connections,
    nullif(d.datconnlimit, -1) as max_database_connections,
    blocks.tables::float8 as table_hit_rate,
    blocks.indexes::float8 as index_hit_rate,
    s.blks_read as blocks_read,
    s.deadlocks,
    s.temp_bytes as spilled_bytes,
    age(d.datfrozenxid) as transaction_age,
    mxid_age(d.datminmxid) as multixact_age,
    current_setting('autovacuum_freeze_max_age')::int as freeze_max_age
from pg_database d
    join pg_stat_database s on s.datid = d.oid
    cross join sessions
    cross join blocks
    cross join growth
where d.datname = current_database();
