-- sql/scale/citus.sql
-- Spreads usage, its daily sums and its ledger of events over the servers of a Citus cluster, by user; everything else
-- stays on the coordinator. Once, by a superuser, on the coordinator, after crafely migrate up:
--
--     psql -X -v ON_ERROR_STOP=1 -f sql/scale/citus.sql "$CRAFELY_DATABASE_URL"
--
-- All of it or nothing: it is one transaction, which locks the three tables while their rows are moved. README.md
-- beside it says what to do before and after, how to go back, and what of this has not been run.
begin;

-- What is changed here is changed on many shards; in one after the other, it may be changed again further down.
set local citus.multi_shard_modify_mode = 'sequential';
set local search_path = public;

do $$
begin
    if not exists (select from pg_proc where proname = 'create_distributed_table') then
        raise exception 'this database has no Citus: create extension citus, and add its workers'
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    -- Row-level security is forced: an owner who is none would move the rows that he sees, which are none.
    if not (select rolsuper from pg_roles where rolname = current_user) then
        raise exception '% is no superuser, and would not see the rows that are to be moved', current_user
            using errcode = 'insufficient_privilege';
    end if;
    if not exists (
        select
        from pg_constraint
        where conrelid = 'usage'::regclass
            and conname = 'usage_user_id_api_key_id_fkey'
    ) then
        raise exception 'usage has been spread over servers before: there is nothing to do'
            using errcode = 'object_not_in_prerequisite_state';
    end if;
end
$$;

lock table usage, usage_daily, usage_events in access exclusive mode;

-- How many rows there are, to be compared at the end.
select
    set_config('crafely.scale_usage', (select count(*) from usage)::text, true),
    set_config('crafely.scale_usage_daily', (select count(*) from usage_daily)::text, true),
    set_config('crafely.scale_usage_events', (select count(*) from usage_events)::text, true);

-- The coordinator goes to a shard as the role that asks, with a connection of its own. Without a password nobody else
-- comes in so, where pg_hba.conf lets in only the coordinator (README.md; the workers need the same roles).
alter role crafely_app login;
alter role crafely_meter login;
alter role crafely_admin login;
alter role crafely_backup login;

-- Citus refuses triggers on distributed tables.
--
-- The trail of changes: no role may update, delete or truncate usage, so what is lost is the trace of a superuser, or
-- of the owner, who works on it by hand. Retention still writes its own line: the function that drops a month does.
drop trigger usage_audit on usage;
drop trigger usage_audit_truncate on usage;
-- The stamps: record_distributed.sql stamps what it adds to, and nothing else updates the sums. Nobody updates events.
drop trigger usage_daily_set_updated_at on usage_daily;
drop trigger usage_events_set_updated_at on usage_events;

-- Keys stay on the coordinator, and no distributed table can refer to a table there. What the constraint held, the
-- recording statement looks up: a record against a key that is not its user's is not stored. Keys are never deleted.
alter table usage drop constraint usage_user_id_api_key_id_fkey;

-- A key that is unique in each shard is unique in all of them only where it has the column that the shards are cut by.
alter table usage drop constraint usage_pkey;
alter table usage add constraint usage_pkey primary key (user_id, id, created_at);

-- Citus takes no subqueries in policies. The subquery had the function called once a statement; it is stable, so a
-- condition that an index is used for still calls it once, and any other one for each row that it looks at.
alter policy usage_own on usage
    using (user_id = current_user_id())
    with check (user_id = current_user_id());
alter policy usage_daily_own on usage_daily
    using (user_id = current_user_id())
    with check (user_id = current_user_id());
alter policy usage_events_own on usage_events
    using (user_id = current_user_id())
    with check (user_id = current_user_id());

-- Shards get the grants of a table, and not those of its columns. So roles may write every column of these two; which
-- rows, row-level security says as before.
grant insert, update on usage_daily to crafely_app, crafely_meter;
grant insert on usage_events to crafely_app, crafely_meter;
grant select on usage_events to crafely_admin;

-- The policies call it on the workers.
select create_distributed_function('current_user_id()');

-- A user's rows of all three are on one server, so that what is about one user is one server's work.
select create_distributed_table('usage_daily', 'user_id');
select create_distributed_table('usage_events', 'user_id', colocate_with => 'usage_daily');
select create_distributed_table('usage', 'user_id', colocate_with => 'usage_daily');

-- What was moved still lies here, unseen.
select truncate_local_data_after_distributing_table('usage_daily');
select truncate_local_data_after_distributing_table('usage_events');
select truncate_local_data_after_distributing_table('usage');

do $$
declare
    spread text;
    found bigint;
begin
    foreach spread in array array['usage', 'usage_daily', 'usage_events'] loop
        execute format('select count(*) from %I', spread) into found;
        if found <> current_setting('crafely.scale_' || spread)::bigint then
            raise exception '% has % rows, and had %: nothing is changed', spread, found,
                current_setting('crafely.scale_' || spread);
        end if;
    end loop;
end
$$;

-- A month of usage is made where it is, and no longer aside: the coordinator makes its shards, too. Rows that wait for
-- their month in the default partition stay there, with a warning: to move them would take writes and changes of the
-- same shards in one transaction. They are found and summed like any others. For the audit trail all is as it was.
alter function ensure_month_partitions(regclass, integer) rename to ensure_month_partitions_here;
revoke all on function ensure_month_partitions_here(regclass, integer) from crafely_admin;

create function ensure_month_partitions(parent regclass, months_ahead integer)
    returns integer
    language plpgsql
    security definer
    set search_path = public, pg_temp
as $$
declare
    month timestamp := date_trunc('month', now() at time zone 'utc') - interval '2 months';
    last constant timestamp := date_trunc('month', now() at time zone 'utc') + make_interval(months => months_ahead);
    part text;
    lower_bound text;
    upper_bound text;
    has_rows boolean;
    made integer := 0;
begin
    if parent <> 'usage'::regclass then
        return ensure_month_partitions_here(parent, months_ahead);
    end if;
    if months_ahead not between 0 and 120 then
        raise exception 'months_ahead is %, and must be from 0 to 120', months_ahead
            using errcode = 'invalid_parameter_value';
    end if;
    perform set_config('citus.multi_shard_modify_mode', 'sequential', true);
    perform pg_advisory_xact_lock(hashtextextended('crafely.ensure_month_partitions.usage', 0));

    while month <= last loop
        part := to_char(month, '"usage_y"YYYY"m"MM');
        if to_regclass(part) is null then
            lower_bound := to_char(month, 'YYYY-MM-DD') || ' 00:00:00+00';
            upper_bound := to_char(month + interval '1 month', 'YYYY-MM-DD') || ' 00:00:00+00';
            execute format('select exists (select from usage_default where created_at >= %L and created_at < %L)',
                lower_bound, upper_bound) into has_rows;
            if has_rows then
                raise warning 'rows of % wait in usage_default, so it is not made', part;
            else
                execute format('create table %I partition of usage for values from (%L) to (%L)',
                    part, lower_bound, upper_bound);
                execute format('alter table %I enable row level security', part);
                execute format('alter table %I force row level security', part);
                made := made + 1;
            end if;
        end if;
        month := month + interval '1 month';
    end loop;
    return made;
end
$$;

comment on function ensure_month_partitions(regclass, integer) is
    'Makes the monthly partitions of a table from two months ago to so many months ahead; gives how many it made.';

revoke all on function ensure_month_partitions(regclass, integer) from public;
grant execute on function ensure_month_partitions(regclass, integer) to crafely_admin;

commit;
