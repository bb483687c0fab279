-- Seals: a chain of digests over the trail, so that a row altered, removed or inserted behind everybody's back is found
-- (crafely audit verify), whoever did it. Each seal covers some rows and the seal before it; whoever recomputes the
-- chain from some point on is found by a head that was kept elsewhere: housekeeping logs it, a backup notes it.
--
-- What is sealed must be complete: a row that commits later must not fall among those sealed before it. Ids are given
-- in no order of commits, so rows are taken in the order of their transactions, and only of those that are older than
-- the oldest one still running. No writer waits for that.

-- Not volatile, so no row is written anew: those that are there get this migration's transaction.
alter table audit_log
    add column transaction_id xid8 not null default pg_current_xact_id();

comment on column audit_log.transaction_id is 'The transaction that wrote the row: seals take rows in this order.';

-- The order in which rows are sealed and verified. (No index of a partitioned table is made concurrently.)
-- squawk-ignore require-concurrent-index-creation
create index audit_log_transaction_id_id_idx on audit_log (transaction_id, id);

create table audit_seals (
    -- 1, 2, 3 …, without a gap.
    id bigint not null,
    created_at timestamptz not null default now(),
    -- batch: seals rows. drop: a month was dropped, whose seals have no rows any more. restart: the trail goes on in
    -- another cluster, whose transaction ids begin low again.
    kind text not null,
    -- The cluster, as pg_control_system() names it.
    system_identifier bigint not null,
    -- What is covered: rows with since_id <= id (and up to the next restart's until_id), and
    -- (from_transaction_id, from_id) <= (transaction_id, id) < (to_transaction_id, to_id).
    since_id bigint not null,
    until_id bigint,
    from_transaction_id xid8 not null,
    from_id bigint not null,
    to_transaction_id xid8 not null,
    to_id bigint not null,
    -- All rows of a batch are of one month (UTC), so that dropping a month leaves no seal with half of its rows.
    month date,
    row_count integer not null,
    row_ids int8multirange not null,
    -- Four bytes of each row's digest, in the order of ids: they tell which row it was. That one was is told by
    -- row_digest, over all of all rows' digests in that order.
    row_checks bytea not null,
    row_digest bytea not null,
    -- Over all of the above and the digest of the seal before.
    digest bytea not null,

    constraint audit_seals_pkey primary key (id),
    constraint audit_seals_kind_check check (kind in ('batch', 'drop', 'restart'))
);

comment on table audit_seals is 'A hash chain over audit_log, append-only: crafely audit verify.';

-- The restart that ends a stretch of ids, and the drop after which a month has no rows: both few.
create index audit_seals_kind_id_idx on audit_seals (kind, id) where kind <> 'batch';

-- It holds nothing of any tenant. Row-level security is here for the owner: even as such nobody updates or deletes.
alter table audit_seals enable row level security;
alter table audit_seals force row level security;

create policy audit_seals_read on audit_seals
    for select
    to crafely_admin, crafely_backup, current_user
    using (true);

create policy audit_seals_write on audit_seals
    for insert
    to current_user
    with check (true);

grant select on audit_seals to crafely_admin, crafely_backup;

-- The functions below run as the owner, who so far could only add to the trail.
create policy audit_log_seal on audit_log
    for select
    to current_user
    using (true);

-- Appends a seal to the chain: its id, cluster, digest and whatever its kind does not need are filled in here.
-- sql/audit_log/verify.sql computes the digest once more, in words of its own: it takes nothing here on trust.
create function append_audit_seal(last audit_seals, seal audit_seals)
    returns audit_seals
    language plpgsql
    set search_path = public, pg_temp
as $$
declare
    begins constant boolean := last.id is null or last.kind = 'restart';
begin
    seal.id := coalesce(last.id, 0) + 1;
    seal.created_at := now();
    seal.system_identifier := (select system_identifier from pg_control_system());
    -- Where the last one ended. (No id is the smallest bigint, and none is the largest.)
    seal.since_id := case
        when last.id is null then -9223372036854775808
        when begins then last.until_id
        else last.since_id
    end;
    seal.from_transaction_id := case when begins then '0' else last.to_transaction_id end;
    seal.from_id := case when begins then -9223372036854775808 else last.to_id end;
    seal.to_transaction_id := coalesce(seal.to_transaction_id, seal.from_transaction_id);
    seal.to_id := coalesce(seal.to_id, seal.from_id);
    seal.row_count := coalesce(seal.row_count, 0);
    seal.row_ids := coalesce(seal.row_ids, '{}');
    seal.row_checks := coalesce(seal.row_checks, '');
    seal.row_digest := coalesce(seal.row_digest, sha256(''));
    -- The text of no value here depends on a setting of the session, nor on the version of the server.
    seal.digest := sha256(convert_to(json_build_array(
        encode(last.digest, 'hex'), seal.id, encode(timestamptz_send(seal.created_at), 'hex'), seal.kind,
        seal.system_identifier, seal.since_id, seal.until_id, seal.from_transaction_id::text, seal.from_id,
        seal.to_transaction_id::text, seal.to_id, encode(date_send(seal.month), 'hex'), seal.row_count,
        seal.row_ids::text, encode(seal.row_checks, 'hex'), encode(seal.row_digest, 'hex')
    )::text, 'UTF8'));
    insert into audit_seals values (seal.*);
    return seal;
end
$$;

comment on function append_audit_seal(audit_seals, audit_seals) is
    'Appends a seal to the chain, after the last one; gives it as it was stored. The caller holds the lock.';

-- Seals the rows that follow the last seal: at most 10,000, of one month, of transactions and ids before these. Gives
-- the seal, or null where there is no such row.
create function seal_audit_batch(last audit_seals, before_transaction_id xid8, before_id bigint)
    returns audit_seals
    language plpgsql
    set search_path = public, pg_temp
    -- The rows come in the order of an index, whatever the planner believes of values that it does not know.
    set enable_seqscan = off
    set enable_sort = off
as $$
declare
    begins constant boolean := last.id is null or last.kind = 'restart';
    since constant bigint := case
        when last.id is null then -9223372036854775808
        when begins then last.until_id
        else last.since_id
    end;
    from_transaction constant xid8 := case when begins then '0' else last.to_transaction_id end;
    from_row constant bigint := case when begins then -9223372036854775808 else last.to_id end;
    seal audit_seals;
begin
    with taken as materialized (
        select
            a.id,
            a.transaction_id,
            date_trunc('month', a.created_at at time zone 'utc')::date as month,
            sha256(convert_to(json_build_array(
                a.id, encode(timestamptz_send(a.created_at), 'hex'), a.transaction_id::text, a.actor_user_id,
                a.actor_api_key_id, a.actor_role, a.request_id, a.table_name, a.row_id, a.user_id, a.action,
                a.old::text, a.new::text
            )::text, 'UTF8')) as digest
        from audit_log a
        where (a.transaction_id, a.id) >= (from_transaction, from_row)
            and a.transaction_id < before_transaction_id
            and a.id >= since
            and a.id < before_id
        order by a.transaction_id, a.id
        limit 10000
    ),
    marked as (
        select
            t.id, t.transaction_id, t.month, t.digest,
            bool_or(t.month <> f.month) over (order by t.transaction_id, t.id) as is_later
        from taken t
            cross join (select month from taken order by transaction_id, id limit 1) f
    )
    select
        count(*),
        range_agg(int8range(m.id, m.id + 1)),
        string_agg(substr(m.digest, 1, 4), '' order by m.id),
        sha256(string_agg(m.digest, '' order by m.id)),
        min(m.month),
        max(m.transaction_id),
        (array_agg(m.id order by m.transaction_id desc, m.id desc))[1] + 1
    into
        seal.row_count, seal.row_ids, seal.row_checks, seal.row_digest, seal.month, seal.to_transaction_id, seal.to_id
    from marked m
    where not m.is_later;
    if seal.row_count = 0 then
        return null;
    end if;
    seal.kind := 'batch';
    return append_audit_seal(last, seal);
end
$$;

comment on function seal_audit_batch(audit_seals, xid8, bigint) is
    'Seals the rows after the last seal, at most 10,000; null where there is none. The caller holds the lock.';

-- After a restore into another cluster: seals all that came along, whatever its transaction ids, and says in the chain
-- from which row on transactions are this cluster's. Writers wait for that, this once.
create function restart_audit_seals(last audit_seals)
    returns audit_seals
    language plpgsql
    set search_path = public, pg_temp
as $$
declare
    whole constant xid8 := '18446744073709551615';
    -- Rows from here on were written after whatever was sealed: by the old cluster, or by this one before it knew.
    reached constant bigint := (select max(upper(s.row_ids)) from audit_seals s);
    next_id bigint;
    before_id bigint;
    seal audit_seals;
begin
    lock table audit_log in share mode;
    next_id := (select max(a.id) + 1 from audit_log a);
    foreach before_id in array array_remove(array[reached, nullif(greatest(next_id, reached), reached)], null) loop
        loop
            seal := seal_audit_batch(last, whole, before_id);
            exit when seal.id is null;
            last := seal;
        end loop;
        seal := null;
        seal.kind := 'restart';
        seal.until_id := before_id;
        seal.to_transaction_id := whole;
        seal.to_id := 9223372036854775807;
        last := append_audit_seal(last, seal);
    end loop;
    return last;
end
$$;

comment on function restart_audit_seals(audit_seals) is
    'Ends the old cluster''s part of the chain; gives the last seal. The caller holds the lock.';

create function seal_audit_log(
    -- How many rows were sealed by this call; 0: there is nothing to seal, or somebody else is sealing.
    out row_count integer,
    -- The last seal and its digest, in hexadecimal: the head of the chain. Null: somebody else is sealing.
    out seal_id bigint,
    out head text
)
    language plpgsql
    security definer
    -- Only a restart waits for writers. They would queue up behind it.
    set lock_timeout = '1s'
    set search_path = public, pg_temp
as $$
declare
    last audit_seals;
    seal audit_seals;
begin
    row_count := 0;
    if not pg_try_advisory_xact_lock(hashtextextended('crafely.audit_seals', 0)) then
        return;
    end if;
    select * into last from audit_seals s order by s.id desc limit 1;
    if last.system_identifier <> (select c.system_identifier from pg_control_system() c)
        -- A trail that was never sealed, and comes from a cluster that was ahead of this one.
        or (last.id is null and exists (
            select from audit_log a where a.transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
        ))
    then
        seal := restart_audit_seals(last);
        row_count := (select sum(s.row_count) from audit_seals s where s.id > coalesce(last.id, 0));
    else
        -- The oldest transaction that still runs is asked for before the rows are: all that is older is there.
        seal := seal_audit_batch(last, pg_snapshot_xmin(pg_current_snapshot()), 9223372036854775807);
        row_count := coalesce(seal.row_count, 0);
    end if;
    seal_id := coalesce(seal.id, last.id);
    head := encode(coalesce(seal.digest, last.digest), 'hex');
end
$$;

comment on function seal_audit_log() is
    'Seals what can be sealed of the trail, at most 10,000 rows; after a restore, all of it. Gives the chain''s head.';

-- Retention: drops the oldest month of the trail that is older than so many before the current one, if all of it is
-- sealed, and says so in the chain. Gives the month, or null where there is none.
create function drop_audit_month(months_kept integer)
    returns date
    language plpgsql
    security definer
    -- Dropping a partition makes everybody wait, who wait for whoever makes us wait: rather not now.
    set lock_timeout = '500ms'
    set search_path = public, pg_temp
as $$
declare
    this_month constant timestamp := date_trunc('month', now() at time zone 'utc');
    kept_from constant timestamp := this_month - make_interval(months => months_kept);
    first_month timestamp;
    last audit_seals;
    seal audit_seals;
begin
    -- The two months before the current one are made anew each day: late records may come for them.
    if months_kept not between 2 and 1200 then
        raise exception 'months_kept is %, and must be from 2 to 1200', months_kept
            using errcode = 'invalid_parameter_value';
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('crafely.audit_seals', 0)) then
        return null;
    end if;
    first_month := least(
        (
            select min(to_date(substring(c.relname from 'y\d{4}m\d\d$'), '"y"YYYY"m"MM'))::timestamp
            from pg_inherits i
                join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'audit_log'::regclass
                and c.relname ~ '^audit_log_y\d{4}m\d\d$'
        ),
        -- A restored trail is older than the months that were made for it.
        (
            select date_trunc('month', min(d.created_at) at time zone 'utc')
            from audit_log_default d
            where isfinite(d.created_at)
        )
    );
    select * into last from audit_seals s order by s.id desc limit 1;
    if first_month is null
        or first_month >= kept_from
        or last.system_identifier is distinct from (select c.system_identifier from pg_control_system() c)
        or exists (
            select
            from audit_log a
            where a.created_at >= first_month at time zone 'utc'
                and a.created_at < (first_month + interval '1 month') at time zone 'utc'
                and a.id >= case when last.kind = 'restart' then last.until_id else last.since_id end
                and (last.kind = 'restart' or (a.transaction_id, a.id) >= (last.to_transaction_id, last.to_id))
        )
    then
        return null;
    end if;
    execute format('drop table if exists %I', 'audit_log' || to_char(first_month, '_"y"YYYY"m"MM'));
    delete from audit_log_default d
    where d.created_at >= first_month at time zone 'utc'
        and d.created_at < (first_month + interval '1 month') at time zone 'utc';
    seal.kind := 'drop';
    seal.month := first_month;
    seal := append_audit_seal(last, seal);
    return seal.month;
end
$$;

comment on function drop_audit_month(integer) is
    'Drops the oldest month of the trail before the months that are kept; gives it, or null where there is none.';

revoke all on function append_audit_seal(audit_seals, audit_seals) from public;
revoke all on function seal_audit_batch(audit_seals, xid8, bigint) from public;
revoke all on function restart_audit_seals(audit_seals) from public;
revoke all on function seal_audit_log() from public;
revoke all on function drop_audit_month(integer) from public;
grant execute on function seal_audit_log() to crafely_admin;
grant execute on function drop_audit_month(integer) to crafely_admin;
