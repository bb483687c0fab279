-- What is written: bytes of the log since the server was made, of usage with its indexes, and of its ledger of events.
select
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as wal,
    (
        select sum(pg_total_relation_size(relid))::bigint
        from pg_partition_tree('usage')
    ) as usage,
    pg_total_relation_size('usage_events') as usage_events;
