-- Tables that grow without bound are cut by month (UTC) on created_at. This makes the months that will be needed, so
-- that old ones can be dropped in a moment and indexes stay small. Called at migration, at start-up and daily.
--
-- A month is built aside and attached: that makes writers wait for a moment, where "create table … partition of" would
-- stop every reader too. It runs as the owner (security definer) because nobody else may create tables here; it takes a
-- table's name and a small number, and nothing of either is spliced unquoted.
create function ensure_month_partitions(parent regclass, months_ahead integer)
    returns integer
    language plpgsql
    security definer
    set search_path = public, pg_temp
as $$
declare
    base constant text := (select relname from pg_class where oid = parent);
    fallback constant regclass := to_regclass(format('%I', base || '_default'));
    -- Late events belong to the month before, and 35 days can reach back two.
    month timestamp := date_trunc('month', now() at time zone 'utc') - interval '2 months';
    last constant timestamp := date_trunc('month', now() at time zone 'utc') + make_interval(months => months_ahead);
    part text;
    lower_bound text;
    upper_bound text;
    has_rows boolean;
    made integer := 0;
begin
    if months_ahead not between 0 and 120 then
        raise exception 'months_ahead is %, and must be from 0 to 120', months_ahead
            using errcode = 'invalid_parameter_value';
    end if;
    if fallback is null then
        raise exception '% has no default partition', parent
            using errcode = 'invalid_parameter_value';
    end if;

    -- Two workers that start together take turns; the second finds everything made.
    perform pg_advisory_xact_lock(hashtextextended('crafely.ensure_month_partitions.' || base, 0));

    while month <= last loop
        part := base || to_char(month, '_"y"YYYY"m"MM');
        if to_regclass(format('%I', part)) is null then
            lower_bound := to_char(month, 'YYYY-MM-DD') || ' 00:00:00+00';
            upper_bound := to_char(month + interval '1 month', 'YYYY-MM-DD') || ' 00:00:00+00';

            -- Writers wait a moment, readers do not: a row that was on its way to the default partition must not arrive
            -- there when its month has just been made. Before any other lock, since writers hold this one first.
            execute format('lock table only %s in share row exclusive mode', parent);
            execute format('create table %I (like %s including all excluding identity)', part, parent);

            -- Rows that came before their month was made wait in the default partition. Its triggers rest while they
            -- move, so that the move is not mistaken for their deletion (by the audit trail, say). Detaching it instead
            -- would lock the parent against readers too, and every table that it refers to.
            execute format('select exists (select from %s where created_at >= %L and created_at < %L)',
                fallback, lower_bound, upper_bound) into has_rows;
            if has_rows then
                execute format('alter table %s disable trigger user', fallback);
                execute format('with moved as (delete from %s where created_at >= %L and created_at < %L returning *)'
                    ' insert into %I select * from moved', fallback, lower_bound, upper_bound, part);
                execute format('alter table %s enable trigger user', fallback);
            end if;

            execute format('alter table %s attach partition %I for values from (%L) to (%L)',
                parent, part, lower_bound, upper_bound);

            -- Reached through the parent only; whoever is granted a partition by mistake still sees nothing.
            execute format('alter table %I enable row level security', part);
            execute format('alter table %I force row level security', part);
            made := made + 1;
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
