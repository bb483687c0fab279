-- The tables of the migration tool.
select c.relname::text as name
from pg_class as c
where c.relnamespace = 'public'::regnamespace
    and c.relkind = 'r'
    and c.relname ~ '^_?yoyo_'
order by 1;
