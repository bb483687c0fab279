-- sql/monitor/position.sql
-- How far the log reaches with all that has been acknowledged, in bytes from its beginning: a standby that has replayed
-- it has whatever anybody was told of before. Where commits are acknowledged before they are flushed, that is more.
-- returns: one Position
-- role: crafely_auth
-- not null: bytes
select
    pg_wal_lsn_diff(
        case
            when current_setting('synchronous_commit') = 'off' then pg_current_wal_insert_lsn()
            else pg_current_wal_flush_lsn()
        end,
        '0/0'
    )::bigint as bytes;
