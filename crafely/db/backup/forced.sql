-- The tables whose row-level security holds for their owner, too.
select c.relname::text as name
from pg_class as c
where c.relnamespace = 'public'::regnamespace
    and c.relkind in ('r', 'p')
    and c.relforcerowsecurity
order by 1;
