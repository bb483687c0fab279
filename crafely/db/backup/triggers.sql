-- The triggers of our tables and their partitions that fire, and how: O as usual, A always, R only on a replica.
select
    c.relname::text as relation,
    t.tgname::text as name,
    t.tgenabled::text as enabled
from pg_trigger as t
inner join pg_class as c on c.oid = t.tgrelid
where c.relnamespace = 'public'::regnamespace
    and not t.tgisinternal
    and t.tgenabled <> 'D'
order by 1, 2;
