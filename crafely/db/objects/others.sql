-- What a schema may hold besides tables and functions: schemas, types, sequences, views, rules, statistics.
with ours as (
    select oid, nspname
    from pg_namespace
    where nspname !~ '^pg_|^information_schema$'
),

found as (
    select
        'schema' as kind,
        nspname,
        '' as parent,
        quote_ident(nspname) as name,
        '' as definition,
        oid,
        'pg_namespace' as class
    from ours
    union all
    select
        'type',
        o.nspname,
        '',
        t.oid::regtype::text,
        case t.typtype
            when 'e' then 'enum (' || (
                select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder)
                from pg_enum as e
                where e.enumtypid = t.oid
            ) || ')'
            when 'd' then concat_ws(
                ' ',
                'domain ' || format_type(t.typbasetype, t.typtypmod),
                'default ' || t.typdefault,
                case when t.typnotnull then 'not null' end,
                (
                    select string_agg(pg_get_constraintdef(k.oid, true), ' ' order by k.conname)
                    from pg_constraint as k
                    where k.contypid = t.oid
                        and k.contype = 'c'
                )
            )
            when 'c' then (
                select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
                from pg_attribute as a
                where a.attrelid = t.typrelid
                    and a.attnum > 0
                    and not a.attisdropped
            )
            else t.typtype::text
        end,
        t.oid,
        'pg_type'
    from pg_type as t
    inner join ours as o on o.oid = t.typnamespace
    left join pg_class as c on c.oid = t.typrelid
    where (t.typtype in ('e', 'd', 'r') or c.relkind = 'c')
    union all
    select
        'sequence',
        o.nspname,
        '',
        s.seqrelid::regclass::text,
        format(
            'as %s start %s increment %s minvalue %s maxvalue %s cache %s%s',
            s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
            case when s.seqcycle then ' cycle' end
        ),
        c.oid,
        'pg_class'
    from pg_sequence as s
    inner join pg_class as c on c.oid = s.seqrelid
    inner join ours as o on o.oid = c.relnamespace
    where not exists (
            select
            from pg_depend as d
            where d.classid = 'pg_class'::regclass
                and d.objid = c.oid
                and d.deptype = 'i'
        )
    union all
    select
        case c.relkind when 'm' then 'materialized view' else 'view' end,
        o.nspname,
        '',
        c.oid::regclass::text,
        concat('with (' || array_to_string(c.reloptions, ', ') || ') ', pg_get_viewdef(c.oid, true)),
        c.oid,
        'pg_class'
    from pg_class as c
    inner join ours as o on o.oid = c.relnamespace
    where c.relkind in ('v', 'm')
    union all
    select
        'rule',
        o.nspname,
        r.ev_class::regclass::text,
        quote_ident(r.rulename),
        pg_get_ruledef(r.oid, true),
        c.oid,
        'pg_class'
    from pg_rewrite as r
    inner join pg_class as c on c.oid = r.ev_class
    inner join ours as o on o.oid = c.relnamespace
    where r.rulename <> '_RETURN'
    union all
    select
        'statistics',
        o.nspname,
        s.stxrelid::regclass::text,
        quote_ident(s.stxname),
        pg_get_statisticsobjdef(s.oid),
        s.oid,
        'pg_statistic_ext'
    from pg_statistic_ext as s
    inner join ours as o on o.oid = s.stxnamespace
)

select
    kind,
    nspname::text as schema,
    parent,
    name,
    definition,
    0 as place,
    false as inherited
from found
where not exists (
        select
        from pg_depend as d
        where d.classid = class::regclass
            and d.objid = found.oid
            and d.deptype = 'e'
    );
