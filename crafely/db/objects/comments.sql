-- Comments on whatever has one.
select
    'comment' as kind,
    coalesce(i.schema, 'public') as schema,
    regexp_replace(i.type, '^table (column|constraint)$', '\1') as parent,
    regexp_replace(i.identity, '\m(public|pg_catalog)\.', '', 'g') as name,
    quote_literal(d.description) as definition,
    d.objsubid as place,
    false as inherited
from pg_description as d
cross join lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) as i
where d.classoid in (
        'pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_constraint'::regclass,
        'pg_trigger'::regclass, 'pg_policy'::regclass
    )
    and d.objoid >= 16384
    and not exists (
        select
        from pg_depend as e
        where e.classid = d.classoid
            and e.objid = d.objoid
            and e.deptype = 'e'
    );
