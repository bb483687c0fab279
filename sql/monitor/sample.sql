-- sql/monitor/sample.sql
-- Housekeeping: how large the database, the largest tables and their indexes are, unless this hour has been sampled. A
-- table that somebody has locked counts with the size that its last vacuum saw. Gives how many rows.
-- returns: count
-- role: crafely_admin
-- uses: monitor_samples_created_at_idx
with relations as materialized (
    select
        c.oid,
        c.relkind,
        coalesce(
            relation_bytes(c.oid),
            c.relpages * current_setting('block_size')::bigint
        ) as bytes,
        nullif(c.reltuples, -1)::bigint as entries,
        case when c.relispartition then pg_partition_root(c.oid) end as parent
    from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'm', 'i')
        and n.nspname not in ('pg_catalog', 'pg_toast', 'information_schema')
        and c.relpersistence <> 't'
        and not exists (
            select
            from monitor_samples
            where created_at >= date_trunc('hour', now())
        )
    order by c.relpages desc, c.oid
    limit :take
)
insert into monitor_samples (kind, name, parent, bytes, entries)
select 'table', oid::regclass::text, parent::regclass::text, bytes, entries
from relations
where relkind <> 'i'
union all
select 'index', coalesce(parent, oid)::regclass::text, null, sum(bytes)::bigint, sum(entries)::bigint
from relations
where relkind = 'i'
group by 2
union all
select 'database', current_database(), null, pg_database_size(current_database()), null
where exists (select from relations)
    and has_database_privilege(current_database(), 'connect');
