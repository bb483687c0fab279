-- What others than the owner may do: one row for each object and grantee, with the columns that a right is limited to.
-- PostgreSQL's own rights of everybody, such as to run any function, are rights too until they are revoked.
with rights as (
    select
        n.nspname,
        case c.relkind when 'S' then 'sequence ' else '' end || c.oid::regclass::text as object,
        e.grantee,
        e.privilege_type,
        e.is_grantable,
        null::name as attname,
        0 as attnum
    from pg_class as c
    inner join pg_namespace as n on n.oid = c.relnamespace
    cross join lateral aclexplode(c.relacl) as e
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
        and e.grantee <> c.relowner
        and not exists (
            select
            from pg_depend as d
            where d.classid = 'pg_class'::regclass
                and d.objid = c.oid
                and d.deptype = 'e'
        )
    union all
    select
        n.nspname,
        c.oid::regclass::text,
        e.grantee,
        e.privilege_type,
        e.is_grantable,
        a.attname,
        a.attnum
    from pg_attribute as a
    inner join pg_class as c on c.oid = a.attrelid
    inner join pg_namespace as n on n.oid = c.relnamespace
    cross join lateral aclexplode(a.attacl) as e
    where e.grantee <> c.relowner
        and not a.attisdropped
    union all
    select
        n.nspname,
        'function ' || p.oid::regprocedure::text,
        e.grantee,
        e.privilege_type,
        e.is_grantable,
        null,
        0
    from pg_proc as p
    inner join pg_namespace as n on n.oid = p.pronamespace
    cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as e
    where e.grantee <> p.proowner
        and not exists (
            select
            from pg_depend as d
            where d.classid = 'pg_proc'::regclass
                and d.objid = p.oid
                and d.deptype = 'e'
        )
    union all
    select
        n.nspname,
        'schema ' || quote_ident(n.nspname),
        e.grantee,
        e.privilege_type,
        e.is_grantable,
        null,
        0
    from pg_namespace as n
    cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) as e
    where e.grantee <> n.nspowner
),

named as (
    select
        nspname,
        object,
        case when grantee = 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end as grantee,
        concat(
            lower(privilege_type),
            ' (' || string_agg(quote_ident(attname), ', ' order by attnum) || ')',
            case when is_grantable then ' with grant option' end
        ) as held
    from rights
    where nspname !~ '^pg_|^information_schema$'
        -- The login that migrates needs rights on the schema, however it came by them.
        and pg_get_userbyid(grantee) <> current_setting('crafely.owner')
    group by nspname, object, grantee, privilege_type, is_grantable, attname is null
)

select
    'grant' as kind,
    nspname::text as schema,
    object as parent,
    grantee as name,
    string_agg(held, ', ' order by held) as definition,
    0 as place,
    false as inherited
from named
group by nspname, object, grantee;
