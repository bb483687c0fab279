-- Tables: how they are cut and stored, whose partition they are, and whether row-level security guards them.
-- crafely.owner is the login that migrates: what belongs to it is not said, so that two databases compare.
select
    'table' as kind,
    n.nspname::text as schema,
    coalesce(h.inhparent::regclass::text, '') as parent,
    c.oid::regclass::text as name,
    concat_ws(
        ' ',
        case when c.relpersistence = 'u' then 'unlogged' end,
        'partition by ' || pg_get_partkeydef(c.oid),
        'partition of ' || h.inhparent::regclass::text || ' ' || pg_get_expr(c.relpartbound, c.oid),
        'with (' || array_to_string(c.reloptions, ', ') || ')',
        'owner ' || nullif(pg_get_userbyid(c.relowner), current_setting('crafely.owner'))
    ) as definition,
    0 as place,
    false as inherited
from pg_class as c
inner join pg_namespace as n on n.oid = c.relnamespace
left join pg_inherits as h on h.inhrelid = c.oid
where c.relkind in ('r', 'p', 'f')
    and c.relname !~ '^_?yoyo_'
    and n.nspname !~ '^pg_|^information_schema$'
    and not exists (
        select
        from pg_depend as d
        where d.classid = 'pg_class'::regclass
            and d.objid = c.oid
            and d.deptype = 'e'
    )
union all
select
    'row level security',
    n.nspname::text,
    c.oid::regclass::text,
    '',
    concat_ws(', ', 'enabled', case when c.relforcerowsecurity then 'forced' end),
    0,
    false
from pg_class as c
inner join pg_namespace as n on n.oid = c.relnamespace
where c.relrowsecurity
    and n.nspname !~ '^pg_|^information_schema$';
