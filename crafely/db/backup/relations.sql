-- What is in a database that should be empty: the first relation that neither PostgreSQL nor an extension brings.
select concat(n.nspname, '.', c.relname) as name
from pg_class as c
inner join pg_namespace as n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    and n.nspname !~ '^pg_|^information_schema$'
    and not exists (
        select
        from pg_depend as d
        where d.classid = 'pg_class'::regclass
            and d.objid = c.oid
            and d.deptype = 'e'
    )
order by 1
limit 1;
