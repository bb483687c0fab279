-- sql/monitor/missing_indexes.sql
-- Foreign keys whose own rows no index finds: to delete or to change a row that they point to reads the whole table. An
-- index serves where it begins with all columns of the key, in any order, or with one of them that points to a column
-- which is unique by itself and so finds as few rows. It may leave out rows in which one of the key's columns is null.
-- returns: many MissingIndex
-- role: crafely_monitor
-- not null: columns, create_it
with keys as materialized (
    select
        oid,
        conname,
        conrelid,
        confrelid,
        conkey,
        confkey
    from pg_constraint
    where contype = 'f'
        -- A partition's follow from that of the whole table.
        and conparentid = 0
),
served as (
    select k.oid
    from keys k
        join pg_index i on i.indrelid = k.conrelid
        join pg_class c on c.oid = i.indexrelid
        join pg_am m on m.oid = c.relam
    where i.indisvalid
        and m.amname in ('btree', 'hash')
        and (
            i.indpred is null
            -- As the server keeps «column is not null».
            or substring(
                i.indpred::text
                from '^\{NULLTEST :arg \{VAR [^{}]*:varattno (\d+) [^{}]*\} :nulltesttype 1 [^{}]*\}$'
            )::smallint = any(k.conkey)
        )
        and (
            (i.indkey::int2[])[0 : cardinality(k.conkey) - 1] @> k.conkey
            and cardinality(k.conkey) <= i.indnkeyatts
            or exists (
                select
                from unnest(k.conkey, k.confkey) pair (own, other)
                    join pg_index u on u.indrelid = k.confrelid
                where pair.own = i.indkey[0]
                    and u.indisunique
                    and u.indisvalid
                    and u.indpred is null
                    and u.indnkeyatts = 1
                    and u.indkey[0] = pair.other
            )
        )
)
select
    k.conname::text as name,
    k.conrelid::regclass::text as "table",
    k.confrelid::regclass::text as referenced,
    columns.names as columns,
    format(
        case when c.relkind = 'p' then 'create index on %s (%s)' else 'create index concurrently on %s (%s)' end,
        k.conrelid::regclass,
        columns.quoted
    ) as create_it
from keys k
    join pg_class c on c.oid = k.conrelid
    cross join lateral (
        select
            array_agg(a.attname::text order by p.place) as names,
            string_agg(quote_ident(a.attname), ', ' order by p.place) as quoted
        from unnest(k.conkey) with ordinality p (attnum, place)
            join pg_attribute a on a.attrelid = k.conrelid and a.attnum = p.attnum
    ) columns
where k.oid not in (select oid from served)
order by 2, 1
limit :take;
