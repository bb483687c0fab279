-- A sample each hour for six weeks of each table.
insert into monitor_samples (created_at, kind, name, bytes, entries)
select
    date_trunc('month', now(), 'utc') - n * interval '1 hour',
    k.kind,
    k.name,
    8192 * (1100 - n),
    case when n % 5 > 0 then 100 * (1100 - n) end
from generate_series(1, 1000) as n
cross join (
    select 'table' as kind, relname as name
    from pg_class
    where relnamespace = 'public'::regnamespace
        and relkind = 'r'
        and not relispartition
    union all
    select 'database', current_database()
) as k;
