-- Retention of usage: months of records past their time go, and the daily sums stay. Which months went is kept here:
-- sums of parts of their days can no longer be told, and reconciling must not take them for a loss.
create table usage_drops (
    -- Its first day.
    month date not null,
    created_at timestamptz not null default now(),

    constraint usage_drops_pkey primary key (month),
    constraint usage_drops_month_check check (extract(day from month) = 1)
);

comment on table usage_drops is 'Months whose records of usage were dropped by retention; their daily sums are kept.';

-- It holds nothing of any tenant. Only the function below writes it.
grant select (month) on usage_drops to crafely_app;
grant select on usage_drops to crafely_backup;

-- Drops one month of records, says so in the trail, and notes it above. Gives whether there was one.
--
-- What locks least: «detach concurrently» is refused where there is a default partition, and a plain detach locks the
-- same tables and also the keys that usage refers to, since a table that stands alone has a foreign key of its own.
-- Dropping it where it is takes usage, its default partition and the month, for some milliseconds, however many rows:
-- the files go after the commit. The other months are not locked, but every statement comes to them through usage.
create function drop_usage_month(month date)
    returns boolean
    language plpgsql
    security definer
    -- Whoever waits for usage makes all wait who come later: rather not now than long.
    set lock_timeout = '200ms'
    set search_path = public, pg_temp
as $$
declare
    part constant text := 'usage' || to_char(month, '_"y"YYYY"m"MM');
begin
    -- The two months before the current one are made anew each day: late records come for them.
    if month <> date_trunc('month', month::timestamp)
        or month >= date_trunc('month', now() at time zone 'utc') - interval '2 months'
    then
        raise exception 'the month is %, and must be the first day of one before the last two', month
            using errcode = 'invalid_parameter_value';
    end if;
    -- One at a time, so that the second finds nothing to drop.
    if not pg_try_advisory_xact_lock(hashtextextended('crafely.drop_usage_month', 0))
        or not exists (
            select
            from pg_inherits i
                join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'usage'::regclass
                and c.relname = part
        )
    then
        return false;
    end if;
    execute format('drop table %I', part);
    insert into usage_drops (month)
    values (drop_usage_month.month)
    on conflict do nothing;
    insert into audit_log (actor_role, request_id, table_name, row_id, action, old)
    values (
        coalesce(nullif(current_setting('role', true), 'none'), session_user),
        nullif(current_setting('crafely.request_id', true), ''),
        'usage',
        part,
        'delete',
        jsonb_build_object('month', month)
    );
    return true;
end
$$;

comment on function drop_usage_month(date) is
    'Drops the records of a month that is over for good; false where there are none. Their daily sums stay.';

revoke all on function drop_usage_month(date) from public;
grant execute on function drop_usage_month(date) to crafely_admin;
