-- The roles that statements run as (crafely.roles), what they can, and whose rights they have besides their own.
-- pg_monitor is not said: where the login that migrates may not grant it, the rest works without. Nor is whether a role
-- inherits: since 16 each membership says that for itself.
select
    'role' as kind,
    'public' as schema,
    '' as parent,
    r.rolname::text as name,
    concat_ws(
        ' ',
        case when r.rolcanlogin then 'login' else 'nologin' end,
        case when r.rolsuper then 'superuser' else 'nosuperuser' end,
        case when r.rolbypassrls then 'bypassrls' else 'nobypassrls' end,
        case when r.rolcreaterole then 'createrole' end,
        case when r.rolcreatedb then 'createdb' end,
        case when r.rolreplication then 'replication' end,
        'in role ' || (
            select string_agg(quote_ident(g.rolname), ', ' order by g.rolname)
            from pg_auth_members as m
            inner join pg_roles as g on g.oid = m.roleid
            where m.member = r.oid
                and g.rolname <> 'pg_monitor'
        )
    ) as definition,
    0 as place,
    false as inherited
from pg_roles as r
where r.rolname = any(string_to_array(current_setting('crafely.roles'), ','));
