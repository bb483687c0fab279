-- Triggers, and whether they fire.
select
    'trigger' as kind,
    n.nspname::text as schema,
    t.tgrelid::regclass::text as parent,
    quote_ident(t.tgname) as name,
    concat(
        pg_get_triggerdef(t.oid, true),
        case t.tgenabled when 'D' then ' (disabled)' when 'R' then ' (replica)' when 'A' then ' (always)' end
    ) as definition,
    0 as place,
    t.tgparentid <> 0 as inherited
from pg_trigger as t
inner join pg_class as c on c.oid = t.tgrelid
inner join pg_namespace as n on n.oid = c.relnamespace
where not t.tgisinternal
    and n.nspname !~ '^pg_|^information_schema$';
