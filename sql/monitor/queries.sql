-- sql/monitor/queries.sql
-- What each SQL file has cost since pg_stat_statements began to count, all users and all plans together. The share is
-- that of all statements of this database, those without a file's name too. No rows where nothing is counted.
-- returns: many QueryStats
-- role: crafely_monitor
-- not null: calls, total_ms, max_ms
with stats as (
    select
        name,
        calls,
        total_ms,
        max_ms,
        row_count,
        blocks_hit,
        blocks_read,
        blocks_spilled,
        sum(total_ms) over () as all_ms
    from statement_statistics()
)
select
    name as statement,
    calls,
    total_ms,
    total_ms / nullif(calls, 0) as mean_ms,
    max_ms,
    coalesce(total_ms / nullif(all_ms, 0), 0) as share,
    row_count::float8 / nullif(calls, 0) as rows_per_call,
    blocks_hit::float8 / nullif(calls, 0) as hit_per_call,
    blocks_read::float8 / nullif(calls, 0) as read_per_call,
    blocks_spilled::float8 / nullif(calls, 0) as spilled_per_call
from stats
where name is not null
order by
    case :sort::text
        when 'mean' then total_ms / nullif(calls, 0)
        when 'calls' then calls
        else total_ms
    end desc nulls last,
    name
limit :take;
