-- The audit trail: who changed which row, through which request, from what to what. Written by triggers, so no code
-- path can go around it, and append-only by privilege: nobody is granted insert, update or delete.
create table audit_log (
    id bigint generated always as identity,
    created_at timestamptz not null default now(),
    -- Who: the user and key of the request, and the database role that ran the statement.
    actor_user_id text,
    actor_api_key_id text,
    actor_role text not null,
    request_id text,
    -- What: the row, and whose row it is (null: nobody's, a package).
    table_name text not null,
    row_id text not null,
    user_id text,
    action text not null,
    -- The columns that changed. Secrets and their hashes are named, never shown.
    old jsonb,
    new jsonb,

    constraint audit_log_pkey primary key (id, created_at),
    constraint audit_log_action_check check (action in ('insert', 'update', 'delete'))
)
partition by range (created_at);

comment on table audit_log is 'Every change of every row, append-only, partitioned by month on created_at.';

-- The changes of one user's rows, newest first.
create index audit_log_user_id_created_at_id_idx on audit_log (user_id, created_at desc, id desc);

-- The history of one row.
create index audit_log_table_name_row_id_created_at_idx on audit_log (table_name, row_id, created_at desc);

create table audit_log_default partition of audit_log default;

alter table audit_log enable row level security;
alter table audit_log force row level security;
alter table audit_log_default enable row level security;
alter table audit_log_default force row level security;

create policy audit_log_own on audit_log
    for select
    to crafely_app
    using (user_id = (select current_user_id()));

create policy audit_log_admin on audit_log
    for select
    to crafely_admin, crafely_backup
    using (true);

-- Forced row-level security holds for the owner too, and the owner is who the trigger writes as.
create policy audit_log_write on audit_log
    for insert
    to current_user
    with check (true);

create policy audit_log_default_move on audit_log_default
    to current_user
    using (true)
    with check (true);

grant select on audit_log to crafely_app, crafely_admin, crafely_backup;

select ensure_month_partitions('audit_log', 3);

-- Writes one row of the trail. Arguments of the trigger: the table's name (a partition would give its own), then the
-- columns whose values are never shown.
create function audit_change()
    returns trigger
    language plpgsql
    security definer
    set search_path = public, pg_temp
as $$
declare
    was jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    is_now jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    any_row constant jsonb := coalesce(is_now, was);
    secret text;
begin
    if tg_op = 'UPDATE' then
        -- Only what changed, on both sides; the stamp itself is no news.
        select jsonb_object_agg(key, was -> key), jsonb_object_agg(key, value)
        into was, is_now
        from jsonb_each(is_now)
        where value is distinct from was -> key
            and key <> 'updated_at';
        if is_now is null then
            return null;
        end if;
    end if;

    foreach secret in array coalesce(tg_argv[1:], '{}') loop
        if was ? secret then
            was := was || jsonb_build_object(secret, '[secret]');
        end if;
        if is_now ? secret then
            is_now := is_now || jsonb_build_object(secret, '[secret]');
        end if;
    end loop;

    insert into audit_log (
        actor_user_id, actor_api_key_id, actor_role, request_id,
        table_name, row_id, user_id, action, old, new
    ) values (
        nullif(current_setting('crafely.user_id', true), ''),
        nullif(current_setting('crafely.api_key_id', true), ''),
        -- In here current_user is the owner: the role that ran the statement stands in the setting.
        coalesce(nullif(current_setting('role', true), 'none'), session_user),
        nullif(current_setting('crafely.request_id', true), ''),
        tg_argv[0],
        any_row ->> 'id',
        any_row ->> 'user_id',
        lower(tg_op),
        was,
        is_now
    );
    return null;
end
$$;

comment on function audit_change() is
    'Trigger: writes the change to audit_log. Arguments: the table''s name, then the columns to keep secret.';

revoke all on function audit_change() from public;

-- A touch of last_used_at is no change of the key: the columns that are one are named.
create trigger api_keys_audit
    after insert or delete or update of
        key_id, hashed_key, name, prefix, permissions, active, user_id, expires_at, rotated_from, rate_limit
    on api_keys
    for each row
    execute function audit_change('api_keys', 'hashed_key');

create trigger agents_audit
    after insert or update or delete on agents
    for each row
    execute function audit_change('agents');

create trigger threads_audit
    after insert or update or delete on threads
    for each row
    execute function audit_change('threads');

create trigger packages_audit
    after insert or update or delete on packages
    for each row
    execute function audit_change('packages');

create trigger user_subscriptions_audit
    after insert or update or delete on user_subscriptions
    for each row
    execute function audit_change('user_subscriptions');

-- Usage is its own record of what was inserted; that a row changes or goes is what must be seen. usage_daily and
-- usage_events follow from usage, and comparing them with it shows any change.
create trigger usage_audit
    after update or delete on usage
    for each row
    execute function audit_change('usage');
