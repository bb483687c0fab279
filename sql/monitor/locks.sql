-- sql/monitor/locks.sql
-- Who waits for a lock in this database, and who is in the way, a row for each such pair. A prepared transaction in the
-- way has no process and the pid 0.
-- returns: many BlockedLock
-- role: crafely_monitor
-- not null: pid, application, blocking_pid
with waiting as materialized (
    select
        pid,
        usename,
        application_name,
        query,
        pg_blocking_pids(pid) as blockers
    from pg_stat_activity
    where datname = current_database()
        and wait_event_type = 'Lock'
)
select
    w.pid,
    w.usename::text as role,
    w.application_name as application,
    substring(w.query from '^\w+ /\* crafely:([a-z0-9_]+/[a-z0-9_]+) \*/') as statement,
    l.mode as lock_mode,
    coalesce(l.relation::regclass::text, l.locktype) as object,
    extract(epoch from clock_timestamp() - l.waitstart)::float8 as seconds,
    b.pid as blocking_pid,
    a.usename::text as blocking_role,
    a.application_name as blocking_application,
    a.state as blocking_state,
    substring(a.query from '^\w+ /\* crafely:([a-z0-9_]+/[a-z0-9_]+) \*/') as blocking_statement,
    extract(epoch from clock_timestamp() - a.xact_start)::float8 as blocking_seconds
from waiting w
    cross join lateral (select distinct unnest(w.blockers) as pid) b
    left join lateral (
        select mode, relation, locktype, waitstart
        from pg_locks
        where pg_locks.pid = w.pid
            and not granted
        limit 1
    ) l on true
    left join pg_stat_activity a on a.pid = b.pid
order by seconds desc nulls last, w.pid, b.pid
limit :take;
