-- How large each table, partition and index was, hour after hour: from what it is now nobody can tell how fast it grows
-- and when a disk will be full. And two functions for the DBA's desk, which must neither fail nor wait where something
-- is missing or locked.
create table monitor_samples (
    created_at timestamptz not null default now(),
    kind text not null,
    -- As one writes it in SQL, with its schema where that is needed.
    name text not null,
    -- The partitioned table that a partition is of; null for what stands for itself. Indexes are whole, with all parts.
    parent text,
    -- A table's without its indexes, which have samples of their own.
    bytes bigint not null,
    -- Rows of a table or entries of an index, as the last vacuum or analyze estimated them; null: unknown.
    entries bigint,

    constraint monitor_samples_pkey primary key (kind, name, created_at),
    constraint monitor_samples_kind_check check (kind in ('database', 'table', 'index')),
    constraint monitor_samples_bytes_check check (bytes >= 0),
    constraint monitor_samples_entries_check check (entries >= 0)
);

comment on table monitor_samples is 'Sizes of tables, partitions and indexes, once an hour, for some weeks.';

-- Finds the last sample, and those that are old enough to go.
create index monitor_samples_created_at_idx on monitor_samples (created_at);

-- Housekeeping writes it; the desk and a backup read it. It holds nothing of any tenant.
grant select, insert, delete on monitor_samples to crafely_admin;
grant select on monitor_samples to crafely_monitor, crafely_backup;

-- The size functions of PostgreSQL open the relation, and so wait for whoever has it locked. An observer that waits in
-- the middle of an incident is of no use, and would hold up whoever comes after: it gives up at once.
create function relation_bytes(relation oid)
    returns bigint
    language plpgsql
    set lock_timeout = '1ms'
    set search_path = pg_catalog, pg_temp
as $$
begin
    return pg_table_size(relation);
exception
    when lock_not_available then return null;
end
$$;

comment on function relation_bytes(oid) is
    'Bytes of a table (without its indexes) or of an index; null where it is gone, or locked exclusively just now.';

revoke all on function relation_bytes(oid) from public;
grant execute on function relation_bytes(oid) to crafely_admin, crafely_monitor;

-- What pg_stat_statements knows of this database, by the name of the SQL file that stands in each statement. The text
-- itself, which may hold somebody's values, goes no further than this. The extension is the DBA's to install, in a
-- schema of his choice, so it is looked for each time; where it is missing, not loaded or too old, no row comes.
-- Nested statements are left out: their time is that of the one that called them.
create function statement_statistics(
    -- The file, such as threads/get; null: all statements together that carry no name.
    out name text,
    out calls bigint,
    out total_ms double precision,
    out max_ms double precision,
    out row_count bigint,
    out blocks_hit bigint,
    out blocks_read bigint,
    out blocks_spilled bigint,
    -- Of all rows alike: since when it counts, and how many entries it has dropped for want of room.
    out since timestamptz,
    out dropped bigint
)
    returns setof record
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    place constant text := (
        select n.nspname
        from pg_extension e
            join pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'pg_stat_statements'
    );
begin
    if place is null then
        return;
    end if;
    return query execute format(
        $query$
            select
                substring(s.query from '^\w+ /\* crafely:([a-z0-9_]+/[a-z0-9_]+) \*/') as name,
                sum(s.calls)::bigint,
                sum(s.total_exec_time),
                max(s.max_exec_time),
                sum(s.rows)::bigint,
                sum(s.shared_blks_hit)::bigint,
                sum(s.shared_blks_read)::bigint,
                sum(s.temp_blks_written)::bigint,
                min(i.stats_reset),
                min(i.dealloc)
            from %1$I.pg_stat_statements s
                cross join %1$I.pg_stat_statements_info i
            where s.dbid = (select oid from pg_database where datname = current_database())
                and s.toplevel
            group by 1
        $query$,
        place
    );
exception
    when object_not_in_prerequisite_state or undefined_column or undefined_table or insufficient_privilege then return;
end
$$;

comment on function statement_statistics() is
    'pg_stat_statements of this database, summed by SQL file; no rows where it is not there. Shows no text.';

revoke all on function statement_statistics() from public;
grant execute on function statement_statistics() to crafely_monitor;
