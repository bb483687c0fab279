-- Functions and procedures, with their whole text.
select
    'function' as kind,
    n.nspname::text as schema,
    '' as parent,
    p.oid::regprocedure::text as name,
    concat(
        pg_get_functiondef(p.oid),
        '-- owner ' || nullif(pg_get_userbyid(p.proowner), current_setting('crafely.owner'))
    ) as definition,
    0 as place,
    false as inherited
from pg_proc as p
inner join pg_namespace as n on n.oid = p.pronamespace
where p.prokind in ('f', 'p', 'w')
    and n.nspname !~ '^pg_|^information_schema$'
    and not exists (
        select
        from pg_depend as d
        where d.classid = 'pg_proc'::regclass
            and d.objid = p.oid
            and d.deptype = 'e'
    );
