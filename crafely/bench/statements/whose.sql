-- Whether the bench has made this database, and whether there is nothing in it.
select
    to_regclass('crafely_bench.seed') is not null as is_ours,
    not exists (
        select
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
    ) as is_empty;
