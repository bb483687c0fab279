-- The columns that a sequence numbers, and that sequence.
select
    c.relname::text as relation,
    a.attname::text as name,
    pg_get_serial_sequence(c.oid::regclass::text, a.attname) as sequence
from pg_attribute as a
inner join pg_class as c on c.oid = a.attrelid
where c.relnamespace = 'public'::regnamespace
    and c.relkind in ('r', 'p')
    and not c.relispartition
    and c.relname !~ '^_?yoyo_'
    and pg_get_serial_sequence(c.oid::regclass::text, a.attname) is not null
order by 1, 2;
