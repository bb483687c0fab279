-- Policies of row-level security.
select
    'policy' as kind,
    n.nspname::text as schema,
    c.oid::regclass::text as parent,
    quote_ident(p.polname) as name,
    concat_ws(
        ' ',
        case when not p.polpermissive then 'as restrictive' end,
        case p.polcmd
            when 'r' then 'for select'
            when 'a' then 'for insert'
            when 'w' then 'for update'
            when 'd' then 'for delete'
        end,
        'to ' || (
            select string_agg(g.name, ', ' order by g.name)
            from unnest(p.polroles) as r (role)
            cross join lateral (
                select case
                    when r.role = 0 then 'public'
                    when pg_get_userbyid(r.role) = current_setting('crafely.owner') then 'current_user'
                    else quote_ident(pg_get_userbyid(r.role))
                end
            ) as g (name)
        ),
        'using (' || pg_get_expr(p.polqual, p.polrelid, true) || ')',
        'with check (' || pg_get_expr(p.polwithcheck, p.polrelid, true) || ')'
    ) as definition,
    0 as place,
    false as inherited
from pg_policy as p
inner join pg_class as c on c.oid = p.polrelid
inner join pg_namespace as n on n.oid = c.relnamespace
where n.nspname !~ '^pg_|^information_schema$';
