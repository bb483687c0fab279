-- sql/monitor/connections.sql
-- The server's connections, counted by database, role, application and state.
-- returns: many Connections
-- role: crafely_monitor
-- not null: application
select
    datname::text as database,
    usename::text as role,
    application_name as application,
    coalesce(state, 'unknown') as state,
    count(*) as connections,
    max(extract(epoch from clock_timestamp() - state_change))::float8 as longest_seconds
from pg_stat_activity
where backend_type = 'client backend'
group by 1, 2, 3, 4
order by 5 desc, 1, 2, 3, 4
limit :take;
