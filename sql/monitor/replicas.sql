-- sql/monitor/replicas.sql
-- Who follows this server, and how far behind: replicas, and slots that keep the log for one that is not there. Bytes
-- are of the log; of a replica what it has not applied, of a slot what is kept on its account.
-- returns: many Replica
-- role: crafely_monitor
-- not null: name
with here as (
    select case
        when pg_is_in_recovery() then pg_last_wal_receive_lsn()
        else pg_current_wal_lsn()
    end as lsn
)
select
    coalesce(s.slot_name::text, nullif(r.application_name, ''), r.pid::text) as name,
    coalesce(r.state, 'absent') as state,
    r.sync_state = 'sync' as synchronous,
    greatest(pg_wal_lsn_diff(here.lsn, r.replay_lsn), 0)::bigint as lag_bytes,
    extract(epoch from r.replay_lag)::float8 as lag_seconds,
    greatest(pg_wal_lsn_diff(here.lsn, s.restart_lsn), 0)::bigint as kept_bytes
from pg_stat_replication r
    full join pg_replication_slots s on s.active_pid = r.pid
    cross join here
order by 1
limit :take;
