-- sql/monitor/statistics.sql
-- Whether pg_stat_statements counts here: loaded by the server, made in this database, and new enough. And since when,
-- with how many entries it has dropped for want of room (null: nothing is counted).
-- returns: one Statistics
-- role: crafely_monitor
-- not null: loaded
select
    current_setting('shared_preload_libraries') ~ '\mpg_stat_statements\M' as loaded,
    exists (select from pg_extension where extname = 'pg_stat_statements') as installed,
    counted.since,
    counted.dropped
from (select) as always
    left join lateral (
        select since, dropped
        from statement_statistics()
        limit 1
    ) counted on true;
