-- Indexes but for those that a constraint brings along.
select
    'index' as kind,
    n.nspname::text as schema,
    i.indrelid::regclass::text as parent,
    i.indexrelid::regclass::text as name,
    concat(
        replace(pg_get_indexdef(i.indexrelid, 0, true), ' ON ONLY ', ' ON '),
        case when not i.indisvalid then ' (invalid)' end
    ) as definition,
    0 as place,
    c.relispartition as inherited
from pg_index as i
inner join pg_class as c on c.oid = i.indrelid
inner join pg_namespace as n on n.oid = c.relnamespace
where c.relkind in ('r', 'p', 'm')
    and c.relname !~ '^_?yoyo_'
    and n.nspname !~ '^pg_|^information_schema$'
    and not exists (
        select
        from pg_constraint as k
        where k.conindid = i.indexrelid
            and k.contype in ('p', 'u', 'x')
    )
    and not exists (
        select
        from pg_depend as d
        where d.classid = 'pg_class'::regclass
            and d.objid = c.oid
            and d.deptype = 'e'
    );
