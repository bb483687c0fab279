-- The months of usage that are filled, by the names of their partitions.
select c.relname
from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'usage'::regclass
    and pg_relation_size(c.oid) > 0;
