-- sql/monitor/statistics.sql
-- Whether pg_stat_statements counts here: its role may see statistics, the server has loaded it, it was made in this
-- database, and is new enough. And since when, with how many entries it has dropped for want of room (null: nothing is
-- counted).
-- returns: one Statistics
-- role: crafely_monitor
-- not null: allowed, loaded
select
    pg_has_role('pg_monitor', 'usage') as allowed,
    case
        when pg_has_role('pg_read_all_settings', 'usage')
            then current_setting('shared_preload_libraries') ~ '\mpg_stat_statements\M'
        else false
    end as loaded,
    exists (select from pg_extension where extname = 'pg_stat_statements') as installed,
    counted.since,
    counted.dropped
from (select) as always
    left join lateral (
        select since, dropped
        from statement_statistics()
        limit 1
    ) counted on true;
