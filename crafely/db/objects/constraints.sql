-- Constraints but for not null, which the columns say.
select
    'constraint' as kind,
    n.nspname::text as schema,
    k.conrelid::regclass::text as parent,
    quote_ident(k.conname) as name,
    pg_get_constraintdef(k.oid, true) as definition,
    case k.contype when 'p' then 1 when 'u' then 2 when 'f' then 3 else 4 end as place,
    not k.conislocal or k.conparentid <> 0 or c.relispartition as inherited
from pg_constraint as k
inner join pg_class as c on c.oid = k.conrelid
inner join pg_namespace as n on n.oid = c.relnamespace
where k.contype in ('c', 'p', 'u', 'f', 'x')
    and c.relname !~ '^_?yoyo_'
    and n.nspname !~ '^pg_|^information_schema$'
    and not exists (
        select
        from pg_depend as d
        where d.classid = 'pg_class'::regclass
            and d.objid = c.oid
            and d.deptype = 'e'
    );
