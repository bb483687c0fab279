-- sql/monitor/storage.sql
-- The largest tables, each with its partitions (whose parent is the table), as they are now, and how fast they grow
-- according to the samples. A size is null while somebody has the table locked; it is not waited for.
-- returns: many TableSize
-- role: crafely_monitor
-- scans: monitor_samples, because housekeeping keeps no more than some weeks of it
-- not null: dead_rows
with leaves as materialized (
    select
        c.oid,
        c.oid::regclass::text as name,
        case when c.relispartition then pg_partition_root(c.oid)::regclass::text end as parent,
        relation_bytes(c.oid) as bytes,
        (select sum(relation_bytes(i.indexrelid)) from pg_index i where i.indrelid = c.oid)::bigint as index_bytes,
        -- What the statistics counted; where they were lost or reset, what the last vacuum estimated.
        coalesce(nullif(pg_stat_get_live_tuples(c.oid), 0), nullif(c.reltuples, -1)::bigint) as row_count,
        pg_stat_get_dead_tuples(c.oid) as dead_rows,
        greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)) as vacuumed_at,
        age(c.relfrozenxid) as transaction_age
    from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm')
        and n.nspname not in ('pg_catalog', 'information_schema')
        and c.relpersistence <> 't'
    order by c.relpages desc, c.oid
    limit :take
),
whole as (
    select
        coalesce(parent, name) as name,
        null as parent,
        count(parent) as partitions,
        sum(bytes)::bigint as bytes,
        sum(index_bytes)::bigint as index_bytes,
        sum(row_count)::bigint as row_count,
        sum(dead_rows)::bigint as dead_rows,
        max(vacuumed_at) as vacuumed_at,
        max(transaction_age) as transaction_age
    from leaves
    group by coalesce(parent, name)
),
every as (
    select name, parent, partitions, bytes, index_bytes, row_count, dead_rows, vacuumed_at, transaction_age
    from whole
    union all
    select name, parent, 0, bytes, index_bytes, row_count, dead_rows, vacuumed_at, transaction_age
    from leaves
    where parent is not null
),
samples as (
    select
        coalesce(parent, name) as name,
        created_at,
        sum(bytes) as bytes
    from monitor_samples
    where kind = 'table'
    group by 1, 2
    union all
    select name, created_at, bytes
    from monitor_samples
    where kind = 'table'
        and parent is not null
),
growth as (
    select
        name,
        (regr_slope(bytes::float8, extract(epoch from created_at)) * 86400)::bigint as bytes_per_day
    from samples
    group by name
    having max(created_at) - min(created_at) >= interval '1 day'
)
select
    e.name,
    e.parent,
    e.partitions,
    e.bytes,
    e.index_bytes,
    e.row_count,
    e.dead_rows,
    e.vacuumed_at,
    e.transaction_age,
    g.bytes_per_day
from every e
    left join growth g on g.name = e.name
order by
    coalesce(e.parent, e.name),
    e.parent nulls first,
    e.name;
