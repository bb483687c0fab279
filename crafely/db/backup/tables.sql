-- The tables that a backup holds: all in public but those of extensions and of the migration tool. A partitioned table
-- stands for its partitions. «is_whole» is whether who asks sees every row of it: forced row-level security answers
-- somebody without a policy with no rows, and says nothing.
select
    c.relname::text as name,
    (
        select array_agg(a.attname::text order by a.attnum)
        from pg_attribute as a
        where a.attrelid = c.oid
            and a.attnum > 0
            and not a.attisdropped
            and a.attgenerated = ''
    ) as columns,
    array(
        select distinct f.relname::text
        from pg_constraint as k
        inner join pg_class as f on f.oid = k.confrelid
        where k.conrelid = c.oid
            and k.contype = 'f'
            and k.confrelid <> c.oid
        order by 1
    ) as refers_to,
    array(
        select p.relname::text
        from pg_partition_tree(c.oid) as t
        inner join pg_class as p on p.oid = t.relid
        where t.isleaf
            and t.relid <> c.oid
        order by 1
    ) as partitions,
    (
        select coalesce(sum(greatest(p.reltuples, 0)), 0)::bigint
        from pg_class as p
        where p.oid = c.oid
            or p.oid in (
                select t.relid
                from pg_partition_tree(c.oid) as t
                where t.isleaf
            )
    ) as row_estimate,
    has_table_privilege(c.oid, 'select')
    and (
        not c.relrowsecurity
        or row_security_active(c.oid) is false
        or (
            exists (
                select
                from pg_policy as p
                where p.polrelid = c.oid
                    and p.polpermissive
                    and p.polcmd in ('r', '*')
                    and p.polroles && array[0::oid, r.oid]
                    and pg_get_expr(p.polqual, p.polrelid) = 'true'
            )
            and not exists (
                select
                from pg_policy as p
                where p.polrelid = c.oid
                    and not p.polpermissive
                    and p.polcmd in ('r', '*')
                    and p.polroles && array[0::oid, r.oid]
            )
        )
    ) as is_whole
from pg_class as c
inner join pg_roles as r on r.rolname = current_user
where c.relnamespace = 'public'::regnamespace
    and c.relkind in ('r', 'p')
    and not c.relispartition
    and c.relname !~ '^_?yoyo_'
    and not exists (
        select
        from pg_depend as d
        where d.classid = 'pg_class'::regclass
            and d.objid = c.oid
            and d.deptype = 'e'
    )
order by c.relname;
