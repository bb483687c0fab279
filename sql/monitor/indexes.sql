-- sql/monitor/indexes.sql
-- Each index that stands for itself, with what speaks against it: never used, made superfluous by another, larger than
-- it need be, or left invalid. What a constraint or a foreign key leans on is never called unused, and an index is
-- superfluous only where another one of its table begins with the same columns, in whatever order it is dropped.
--
-- Read from the catalogue alone, which nobody's lock on a table keeps from being read. Sizes and numbers of entries are
-- those of the last vacuum or analyze. The estimate of what an index should take: entries of 12 bytes and the key, in
-- pages filled as it was ordered, and a fiftieth for the pages that lead there. A key's columns have the length of
-- their types; those of no fixed length have twice their share of an average row. So the estimate is rather too large,
-- and the bloat too small.
-- returns: many IndexUse
-- role: crafely_monitor
-- uses: monitor_samples_pkey
-- not null: bytes, scans
with parts as materialized (
    -- Every index; a partition's belongs to that of the whole table, which alone can be dropped.
    select
        coalesce(case when c.relispartition then pg_partition_root(c.oid) end, c.oid) as root,
        c.oid,
        c.relname,
        c.relam,
        c.relpages,
        nullif(c.reltuples, -1) as entries,
        coalesce(
            (select option_value::float8 from pg_options_to_table(c.reloptions) where option_name = 'fillfactor'),
            90
        ) / 100 as fill,
        i.indrelid,
        i.indisvalid and i.indisready as is_valid,
        i.indisunique,
        i.indisreplident,
        i.indkey::int2[] as columns,
        -- A key column is a number, an operator class (which is of one access method), a collation and an order.
        array(
            select concat_ws(':', k.attnum, k.opclass, k.coll, k.sorting)
            from unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[], i.indoption::int2[])
                with ordinality k (attnum, opclass, coll, sorting, place)
            where k.place <= i.indnkeyatts
            order by k.place
        ) as keys,
        -- Expressions and predicate, without their places in the text that they were made from.
        regexp_replace(concat_ws(' where ', i.indexprs, i.indpred), ':location -?\d+', '', 'g') as expressions,
        i.indnullsnotdistinct
    from pg_index i
        join pg_class c on c.oid = i.indexrelid
        join pg_namespace n on n.oid = c.relnamespace
    where n.nspname not in ('pg_catalog', 'pg_toast', 'information_schema')
        and c.relpersistence <> 't'
),
roots as materialized (
    select
        p.oid,
        p.indrelid,
        p.is_valid,
        p.indisunique,
        p.indisreplident,
        p.indnullsnotdistinct,
        p.columns,
        p.keys,
        p.expressions,
        m.amname::text as method,
        c.relkind = 'I' as is_partitioned,
        exists (
            select
            from pg_constraint
            where conindid = p.oid
                and contype in ('p', 'u', 'x')
        ) as is_constraint,
        -- Foreign keys that point to it cannot be without it; those whose rows it finds would be slow without it.
        exists (
            select
            from pg_constraint
            where contype = 'f'
                and conindid = p.oid
        ) as is_referenced,
        exists (
            select
            from pg_constraint f
            where f.contype = 'f'
                and f.conrelid = p.indrelid
                and (
                    p.columns[0 : cardinality(f.conkey) - 1] @> f.conkey
                    or exists (
                        select
                        from unnest(f.conkey, f.confkey) pair (own, other)
                            join pg_index u on u.indrelid = f.confrelid
                        where pair.own = p.columns[0]
                            and u.indisunique
                            and u.indnkeyatts = 1
                            and u.indkey[0] = pair.other
                    )
                )
        ) as finds_references
    from parts p
        join pg_class c on c.oid = p.oid
        join pg_am m on m.oid = p.relam
    where p.root = p.oid
),
covers as (
    -- For each index that another one makes superfluous, the widest of those that do.
    select distinct on (b.oid)
        b.oid,
        a.oid as cover
    from roots b
        join roots a on a.indrelid = b.indrelid and a.oid <> b.oid
    where a.is_valid
        and not b.is_constraint
        and not b.is_referenced
        and not b.indisreplident
        and a.expressions = b.expressions
        and a.keys[1 : cardinality(b.keys)] = b.keys
        and a.columns @> b.columns
        and (a.method = 'btree' or cardinality(a.keys) = cardinality(b.keys))
        -- What is unique must stay so.
        and (
            not b.indisunique
            or a.indisunique and a.keys = b.keys and a.indnullsnotdistinct = b.indnullsnotdistinct
        )
        -- Of two that are alike one stays: that of a constraint, a unique one, else the older.
        and (
            a.keys <> b.keys
            or not b.columns @> a.columns
            or (a.is_constraint or a.is_referenced or a.indisreplident, a.indisunique, b.oid)
            > (false, b.indisunique, a.oid)
        )
    order by b.oid, cardinality(a.keys) desc, a.is_constraint desc, a.indisunique desc, a.oid
),
tables as (
    -- An average row's bytes in its table, without what each row has in front of it, and how many columns of no fixed
    -- length share them: the others may be null, and take none.
    select
        c.oid,
        greatest(c.relpages * current_setting('block_size')::float8 / c.reltuples - 28, 8) as row_bytes,
        (
            select count(*)
            from pg_attribute
            where attrelid = c.oid
                and attnum > 0
                and not attisdropped
                and attlen < 0
        ) as variable
    from pg_class c
    where c.oid in (select indrelid from parts)
        and c.reltuples > 0
),
measured as (
    select
        p.root,
        sum(p.relpages)::bigint * current_setting('block_size')::bigint as bytes,
        sum(p.entries)::bigint as entries,
        sum(pg_stat_get_numscans(p.oid))::bigint as scans,
        bool_and(p.is_valid) as is_valid,
        -- Two pages at least; where nothing is known, what there is.
        sum(
            case
                when p.entries = 0 then 2
                when p.entries > 0 and t.row_bytes > 0
                    then 2 + ceil(
                        1.02 * p.entries * (12 + k.bytes) / ((current_setting('block_size')::int - 40) * p.fill)
                    )
                else p.relpages
            end
        )::bigint * current_setting('block_size')::bigint as needed
    from parts p
        left join tables t on t.oid = p.indrelid
        cross join lateral (
            select ceil(
                sum(
                    case
                        when a.attlen > 0 then a.attlen
                        else t.row_bytes * least(2.0 / greatest(t.variable, 1), 1)
                    end
                ) / 8
            ) * 8 as bytes
            from unnest(p.columns) key (attnum)
                left join pg_attribute a on a.attrelid = p.indrelid and a.attnum = key.attnum and key.attnum > 0
        ) k
    group by p.root
),
known as (
    -- Since when an index has been seen: before that, nobody can have used it or not.
    select
        s.name,
        min(s.created_at) as since
    from monitor_samples s
    where s.kind = 'index'
    group by s.name
),
judged as (
    select
        r.oid::regclass::text as name,
        r.indrelid::regclass::text as "table",
        r.method,
        r.is_partitioned,
        m.bytes,
        m.entries,
        m.scans,
        m.is_valid,
        case
            when r.is_constraint or r.is_referenced then 'constraint'
            when r.indisunique then 'unique'
            when r.finds_references then 'foreign key'
            when r.indisreplident then 'replica identity'
        end as kept_for,
        c.cover::regclass::text as covered_by,
        case when r.method = 'btree' then greatest(m.bytes - m.needed, 0) end::bigint as bloat_bytes,
        exists (
            select
            from pg_stat_progress_create_index b
            where b.index_relid = r.oid
        ) as is_being_built
    from roots r
        join measured m on m.root = r.oid
        left join covers c on c.oid = r.oid
)
select
    j.name,
    j."table",
    j.method,
    j.bytes,
    j.entries,
    j.scans,
    j.kept_for,
    -- Null: it is used, or nobody has looked yet.
    case
        when j.scans = 0 and j.kept_for is null
            then greatest(
                k.since,
                (select stats_reset from pg_stat_database where datname = current_database())
            )
    end as unused_since,
    j.covered_by,
    j.bloat_bytes,
    j.is_valid or j.is_being_built as is_valid,
    format(case when j.is_partitioned then 'drop index %s' else 'drop index concurrently %s' end, j.name) as drop_it,
    format('reindex index concurrently %s', j.name) as rebuild_it
from judged j
    left join known k on k.name = j.name
order by j."table", j.name
limit :take;
