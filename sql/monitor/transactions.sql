-- sql/monitor/transactions.sql
-- The longest open transactions of this database. They hold locks, and keep vacuum from cleaning up behind them. Of a
-- statement only the name of its file is told.
-- returns: many Transaction
-- role: crafely_monitor
-- not null: application, seconds
select
    pid,
    usename::text as role,
    application_name as application,
    coalesce(state, 'unknown') as state,
    extract(epoch from clock_timestamp() - xact_start)::float8 as seconds,
    extract(epoch from clock_timestamp() - state_change)::float8 as state_seconds,
    substring(query from '^\w+ /\* crafely:([a-z0-9_]+/[a-z0-9_]+) \*/') as statement,
    nullif(concat_ws(': ', wait_event_type, wait_event), '') as waits_for
from pg_stat_activity
where backend_type = 'client backend'
    and datname = current_database()
    and xact_start is not null
    and pid <> pg_backend_pid()
order by xact_start
limit :take;
