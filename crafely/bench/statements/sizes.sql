-- Bytes on disk with all indexes, and how many rows that is.
select
    pg_total_relation_size('api_keys') as api_keys,
    pg_total_relation_size('usage_daily') as usage_daily,
    (select count(*) from usage_daily) as sums,
    (
        select sum(pg_total_relation_size(relid))::bigint
        from pg_partition_tree('audit_log')
    ) as audit_log,
    (select count(*) from audit_log) as audited;
