-- The schema as the migrations make it. Written by `make schema`, compared in every run of the tests: change it by a
-- migration. To read, and to see in a review what a migration changes; migrations/ says why things are as they are.
--
-- Not in here: the roles (crafely_app, crafely_auth, crafely_meter,
-- crafely_admin, crafely_monitor, crafely_backup, crafely_encryption; none can log in), months of partitioned tables
-- (ensure_month_partitions makes them) and the tables of the migration tool.

create function audit_change()
    returns trigger
    language plpgsql
    security definer
    set search_path to 'public', 'pg_temp'
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

revoke all on function audit_change() from public;

comment on function audit_change() is
    'Trigger: writes the change to audit_log. Arguments: the table''s name, then the columns to keep secret.';

create function current_user_id()
    returns text
    language sql
    stable parallel safe
    return nullif(current_setting('crafely.user_id'::text, true), ''::text);

comment on function current_user_id() is 'The user of this transaction (setting crafely.user_id); null means nobody.';

create function ensure_month_partitions(parent regclass, months_ahead integer)
    returns integer
    language plpgsql
    security definer
    set search_path to 'public', 'pg_temp'
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

revoke all on function ensure_month_partitions(regclass,integer) from public;

grant execute on function ensure_month_partitions(regclass,integer) to crafely_admin;

comment on function ensure_month_partitions(regclass,integer) is
    'Makes the monthly partitions of a table from two months ago to so many months ahead; gives how many it made.';

create function notify_api_key_change()
    returns trigger
    language plpgsql
as $$
begin
    perform pg_notify('crafely_api_keys', old.key_id);
    return null;
end
$$;

revoke all on function notify_api_key_change() from public;

comment on function notify_api_key_change() is
    'Trigger: tells the listeners of crafely_api_keys the key_id of a key that has changed or is gone.';

create function notify_api_keys_truncated()
    returns trigger
    language plpgsql
as $$
begin
    perform pg_notify('crafely_api_keys', '');
    return null;
end
$$;

revoke all on function notify_api_keys_truncated() from public;

comment on function notify_api_keys_truncated() is
    'Trigger: tells the listeners of crafely_api_keys that every key is gone.';

create function relation_bytes(relation oid)
    returns bigint
    language plpgsql
    set lock_timeout to '1ms'
    set search_path to 'pg_catalog', 'pg_temp'
as $$
begin
    return pg_table_size(relation);
exception
    when lock_not_available then return null;
end
$$;

revoke all on function relation_bytes(oid) from public;

grant execute on function relation_bytes(oid) to crafely_admin, crafely_monitor;

comment on function relation_bytes(oid) is
    'Bytes of a table (without its indexes) or of an index; null where it is gone, or locked exclusively just now.';

create function sealed_with(stored text)
    returns text
    language sql
    immutable parallel safe
    set search_path to 'pg_catalog', 'pg_temp'
    return case when (stored is not null) then coalesce("substring"("left"(stored, 64),
    '^crafely:1:([A-Za-z0-9_.-]{1,32}):'::text), 'off'::text) else null::text end;

revoke all on function sealed_with(text) from public;

grant execute on function sealed_with(text) to crafely_encryption;

comment on function sealed_with(text) is 'The id of the key that a stored text is sealed with; off: it is in clear.';

create function set_updated_at()
    returns trigger
    language plpgsql
as $$
begin
    new.updated_at := greatest(now(), old.updated_at + interval '1 microsecond');
    return new;
end
$$;

comment on function set_updated_at() is
    'Trigger: stamps updated_at on a row that changes, later than any of its versions before.';

create function statement_statistics(out name text, out calls bigint, out total_ms double precision, out max_ms double
    precision, out row_count bigint, out blocks_hit bigint, out blocks_read bigint, out blocks_spilled bigint, out since
    timestamp with time zone, out dropped bigint)
    returns setof record
    language plpgsql
    set search_path to 'pg_catalog', 'pg_temp'
as $$
declare
    place constant text := (
        select n.nspname
        from pg_extension e
            join pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'pg_stat_statements'
    );
begin
    if place is null then
        return;
    end if;
    return query execute format(
        $query$
            select
                substring(s.query from '^\w+ /\* crafely:([a-z0-9_]+/[a-z0-9_]+) \*/') as name,
                sum(s.calls)::bigint,
                sum(s.total_exec_time),
                max(s.max_exec_time),
                sum(s.rows)::bigint,
                sum(s.shared_blks_hit)::bigint,
                sum(s.shared_blks_read)::bigint,
                sum(s.temp_blks_written)::bigint,
                min(i.stats_reset),
                min(i.dealloc)
            from %1$I.pg_stat_statements s
                cross join %1$I.pg_stat_statements_info i
            where s.dbid = (select oid from pg_database where datname = current_database())
                and s.toplevel
            group by 1
        $query$,
        place
    );
exception
    when object_not_in_prerequisite_state or undefined_column or undefined_table or insufficient_privilege then return;
end
$$;

revoke all on function statement_statistics() from public;

grant execute on function statement_statistics() to crafely_monitor;

comment on function statement_statistics() is
    'pg_stat_statements of this database, summed by SQL file; no rows where it is not there. Shows no text.';

create table agents (
    id character varying(255) default concat('agnt_', gen_random_uuid()) not null,
    name text not null,
    instructions text not null,
    tools jsonb,
    context text,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    deleted_at timestamp with time zone,
    user_id text not null,
    constraint agents_pkey primary key (id),
    constraint agents_user_id_id_key unique (user_id, id),
    constraint agents_name_check check (length(name) >= 1 and length(name) <= 255),
    constraint agents_tools_check check (jsonb_typeof(tools) = 'array'::text),
    constraint agents_user_id_check check (user_id <> ''::text)
);

comment on table agents is 'AI agents, soft-deleted by deleted_at.';

create index agents_user_id_created_at_id_idx
    on agents using btree (user_id, created_at desc, id desc)
    where deleted_at is null;

create trigger agents_audit
    after insert or delete or update on agents
    for each row
    when (current_user <> 'crafely_encryption'::name)
    execute function audit_change('agents');

create trigger agents_audit_truncate
    after truncate on agents
    for each statement
    execute function audit_change('agents');

create trigger agents_encryption_audit
    after update on agents
    for each row
    when (current_user = 'crafely_encryption'::name)
    execute function audit_change('agents', 'instructions', 'context');

create trigger agents_set_updated_at
    before update on agents
    for each row
    when (old.* is distinct from new.* and current_user <> 'crafely_encryption'::name)
    execute function set_updated_at();

alter table agents enable row level security;
alter table agents force row level security;

create policy agents_backup on agents
    for select
    to crafely_backup
    using (true);

create policy agents_encryption on agents
    to crafely_encryption
    using (true)
    with check (true);

create policy agents_own on agents
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

grant insert (id, name, instructions, tools, context, user_id), select, update (name, instructions, tools, context,
    deleted_at) on agents to crafely_app;
grant select on agents to crafely_backup;
grant select (id, instructions, context), update (instructions, context) on agents to crafely_encryption;

create table api_keys (
    id character varying(255) default concat('key_', gen_random_uuid()) not null,
    key_id text not null,
    hashed_key text not null,
    name text,
    prefix text,
    permissions text[] default '{}'::text[] not null,
    active boolean default true not null,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    last_used_at timestamp with time zone,
    user_id text not null,
    expires_at timestamp with time zone,
    rotated_from character varying(255),
    rate_limit integer,
    constraint api_keys_pkey primary key (id),
    constraint api_keys_key_id_key unique (key_id),
    constraint api_keys_user_id_id_key unique (user_id, id),
    constraint api_keys_user_id_rotated_from_fkey foreign key (user_id, rotated_from) references api_keys(user_id, id),
    constraint api_keys_name_check check (length(name) >= 1 and length(name) <= 255),
    constraint api_keys_permissions_check check (cardinality(permissions) <= 64),
    constraint api_keys_rate_limit_check check (rate_limit > 0),
    constraint api_keys_user_id_check check (user_id <> ''::text)
)
with (fillfactor=90);

comment on table api_keys is 'API keys; revoked ones stay, with active = false.';
comment on column api_keys.key_id is 'The public half of the token: 16 base62 characters.';
comment on column api_keys.hashed_key is 'argon2id of the secret half, in PHC format.';

create index api_keys_key_id_hash_idx on api_keys using hash (key_id);

create index api_keys_user_id_active_created_at_id_idx
    on api_keys using btree (user_id, active, created_at desc, id desc);

create index api_keys_user_id_created_at_id_idx on api_keys using btree (user_id, created_at desc, id desc);

create unique index api_keys_user_id_rotated_from_idx
    on api_keys using btree (user_id, rotated_from)
    where rotated_from is not null;

create trigger api_keys_audit
    after insert or delete or update of key_id, hashed_key, name, prefix, permissions, active, user_id, expires_at,
        rotated_from, rate_limit on api_keys
    for each row
    execute function audit_change('api_keys', 'hashed_key');

create trigger api_keys_audit_truncate
    after truncate on api_keys
    for each statement
    execute function audit_change('api_keys');

create trigger api_keys_notify
    after delete or update of key_id, hashed_key, permissions, active, user_id, expires_at, rate_limit on api_keys
    for each row
    execute function notify_api_key_change();

create trigger api_keys_notify_truncated
    after truncate on api_keys
    for each statement
    execute function notify_api_keys_truncated();

create trigger api_keys_set_updated_at
    before update of key_id, hashed_key, name, prefix, permissions, active, user_id, expires_at, rotated_from,
        rate_limit on api_keys
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table api_keys enable row level security;
alter table api_keys force row level security;

create policy api_keys_backup on api_keys
    for select
    to crafely_backup
    using (true);

create policy api_keys_lookup on api_keys
    for select
    to crafely_auth, crafely_meter
    using (true);

create policy api_keys_own on api_keys
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

create policy api_keys_touch on api_keys
    for update
    to crafely_auth
    using (true)
    with check (true);

grant insert (key_id, hashed_key, name, prefix, permissions, user_id, expires_at, rotated_from, rate_limit), select (id,
    key_id, name, prefix, permissions, active, created_at, updated_at, last_used_at, user_id, expires_at, rotated_from,
    rate_limit), update (hashed_key, name, permissions, active, expires_at, rate_limit) on api_keys to crafely_app;
grant select on api_keys to crafely_backup;
grant select (id, key_id, hashed_key, permissions, active, last_used_at, user_id, expires_at, rate_limit), update
    (last_used_at) on api_keys to crafely_auth;
grant select (id, user_id) on api_keys to crafely_meter;

create table audit_log (
    id bigint generated always as identity,
    created_at timestamp with time zone default now() not null,
    actor_user_id text,
    actor_api_key_id text,
    actor_role text not null,
    request_id text,
    table_name text not null,
    row_id text,
    user_id text,
    action text not null,
    old jsonb,
    new jsonb,
    transaction_id xid8 default pg_current_xact_id() not null,
    constraint audit_log_pkey primary key (id, created_at),
    constraint audit_log_action_check check (action = any (array['insert'::text, 'update'::text, 'delete'::text,
        'truncate'::text]))
)
partition by range (created_at);

comment on table audit_log is 'Every change of every row, append-only, partitioned by month on created_at.';
comment on column audit_log.transaction_id is 'The transaction that wrote the row: seals take rows in this order.';

create index audit_log_actor_user_id_created_at_id_idx
    on audit_log using btree (actor_user_id, created_at desc, id desc);

create index audit_log_request_id_idx on audit_log using btree (request_id);

create index audit_log_table_name_row_id_created_at_idx on audit_log using btree (table_name, row_id, created_at desc);

create index audit_log_transaction_id_id_idx on audit_log using btree (transaction_id, id);

create index audit_log_user_id_created_at_id_idx on audit_log using btree (user_id, created_at desc, id desc);

alter table audit_log enable row level security;
alter table audit_log force row level security;

create policy audit_log_admin on audit_log
    for select
    to crafely_admin, crafely_backup
    using (true);

create policy audit_log_own on audit_log
    for select
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)));

create policy audit_log_seal on audit_log
    for select
    to current_user
    using (true);

create policy audit_log_write on audit_log
    for insert
    to current_user
    with check (true);

grant select on audit_log to crafely_admin, crafely_app, crafely_backup;

create table audit_log_default partition of audit_log default;

alter table audit_log_default enable row level security;
alter table audit_log_default force row level security;

create policy audit_log_default_move on audit_log_default
    to current_user
    using (true)
    with check (true);

create table audit_seals (
    id bigint not null,
    created_at timestamp with time zone default now() not null,
    kind text not null,
    system_identifier bigint not null,
    since_id bigint not null,
    until_id bigint,
    from_transaction_id xid8 not null,
    from_id bigint not null,
    to_transaction_id xid8 not null,
    to_id bigint not null,
    month date,
    row_count integer not null,
    row_ids int8multirange not null,
    row_checks bytea not null,
    row_digest bytea not null,
    digest bytea not null,
    constraint audit_seals_pkey primary key (id),
    constraint audit_seals_kind_check check (kind = any (array['batch'::text, 'drop'::text, 'restart'::text]))
);

comment on table audit_seals is 'A hash chain over audit_log, append-only: crafely audit verify.';

create index audit_seals_kind_id_idx on audit_seals using btree (kind, id) where kind <> 'batch'::text;

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

create table encryption_keys (
    id text not null,
    check_value text,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    retired_at timestamp with time zone,
    constraint encryption_keys_pkey primary key (id),
    constraint encryption_keys_check_value_check check ((check_value is null) = (id = 'off'::text)),
    constraint encryption_keys_id_check check (id ~ '^[A-Za-z0-9_.-]{1,32}$'::text)
);

comment on table encryption_keys is 'The keys that texts are or were sealed with: ids and check values, never a key.';

create trigger encryption_keys_audit
    after insert or delete or update on encryption_keys
    for each row
    execute function audit_change('encryption_keys');

create trigger encryption_keys_audit_truncate
    after truncate on encryption_keys
    for each statement
    execute function audit_change('encryption_keys');

create trigger encryption_keys_set_updated_at
    before update on encryption_keys
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

grant insert (id, check_value), select (id, check_value, retired_at), update (retired_at) on encryption_keys to
    crafely_admin, crafely_encryption;
grant select on encryption_keys to crafely_backup;

create table idempotency_keys (
    user_id text not null,
    key text not null,
    fingerprint text not null,
    status integer not null,
    location text,
    etag text,
    body text not null,
    created_at timestamp with time zone default now() not null,
    constraint idempotency_keys_pkey primary key (user_id, key),
    constraint idempotency_keys_body_check check (length(body) <= 4194304),
    constraint idempotency_keys_key_check check (length(key) >= 1 and length(key) <= 255),
    constraint idempotency_keys_status_check check (status >= 200 and status <= 299),
    constraint idempotency_keys_user_id_check check (user_id <> ''::text)
);

comment on table idempotency_keys is 'Answers to requests with an Idempotency-Key, for when one is sent again.';

create index idempotency_keys_created_at_idx on idempotency_keys using btree (created_at);

alter table idempotency_keys enable row level security;
alter table idempotency_keys force row level security;

create policy idempotency_keys_backup on idempotency_keys
    for select
    to crafely_backup
    using (true);

create policy idempotency_keys_encryption on idempotency_keys
    for select
    to crafely_encryption
    using (true);

create policy idempotency_keys_own on idempotency_keys
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

create policy idempotency_keys_retention on idempotency_keys
    to crafely_admin
    using (true);

grant delete, select (created_at) on idempotency_keys to crafely_admin;
grant insert (user_id, key, fingerprint, status, location, etag, body), select (user_id, key, fingerprint, status,
    location, etag, body) on idempotency_keys to crafely_app;
grant select on idempotency_keys to crafely_backup;
grant select (body) on idempotency_keys to crafely_encryption;

create table monitor_samples (
    created_at timestamp with time zone default now() not null,
    kind text not null,
    name text not null,
    parent text,
    bytes bigint not null,
    entries bigint,
    constraint monitor_samples_pkey primary key (kind, name, created_at),
    constraint monitor_samples_bytes_check check (bytes >= 0),
    constraint monitor_samples_entries_check check (entries >= 0),
    constraint monitor_samples_kind_check check (kind = any (array['database'::text, 'table'::text, 'index'::text]))
);

comment on table monitor_samples is 'Sizes of tables, partitions and indexes, once an hour, for some weeks.';

create index monitor_samples_created_at_idx on monitor_samples using btree (created_at);

grant delete, insert, select on monitor_samples to crafely_admin;
grant select on monitor_samples to crafely_backup, crafely_monitor;

create table packages (
    id character varying(255) default concat('pkg_', gen_random_uuid()) not null,
    name text not null,
    description text,
    price numeric(12,2) not null,
    features text[] default '{}'::text[] not null,
    "interval" text default 'month'::text not null,
    active boolean default true not null,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    rate_limit integer,
    constraint packages_pkey primary key (id),
    constraint packages_name_key unique (name),
    constraint packages_features_check check (cardinality(features) <= 100),
    constraint packages_interval_check check ("interval" = any (array['month'::text, 'year'::text])),
    constraint packages_name_check check (length(name) >= 1 and length(name) <= 255),
    constraint packages_price_check check (price >= 0::numeric),
    constraint packages_rate_limit_check check (rate_limit > 0)
);

comment on table packages is 'Subscription packages; a package that is no longer sold has active = false.';
comment on column packages.rate_limit is 'Requests a minute; null means that the package says nothing of it.';

create index packages_created_at_id_idx on packages using btree (created_at desc, id desc);

create trigger packages_audit
    after insert or delete or update on packages
    for each row
    execute function audit_change('packages');

create trigger packages_audit_truncate
    after truncate on packages
    for each statement
    execute function audit_change('packages');

create trigger packages_set_updated_at
    before update on packages
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

grant insert (name, description, price, features, "interval", active, rate_limit), select, update (name, description,
    price, features, "interval", active, rate_limit) on packages to crafely_admin;
grant select on packages to crafely_app, crafely_backup;
grant select (id, rate_limit) on packages to crafely_auth;

create table threads (
    id character varying(255) default concat('thrd_', gen_random_uuid()) not null,
    name text not null,
    storage_id text,
    instructions text,
    model text,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    deleted_at timestamp with time zone,
    user_id text not null,
    agent_id character varying(255),
    constraint threads_pkey primary key (id),
    constraint threads_storage_id_key unique (storage_id),
    constraint threads_user_id_agent_id_fkey foreign key (user_id, agent_id) references agents(user_id, id),
    constraint threads_model_check check (length(model) >= 1 and length(model) <= 255),
    constraint threads_name_check check (length(name) >= 1 and length(name) <= 255),
    constraint threads_storage_id_check check (length(storage_id) >= 1 and length(storage_id) <= 255),
    constraint threads_user_id_check check (user_id <> ''::text)
);

comment on table threads is 'Conversation threads, soft-deleted by deleted_at.';

create index threads_user_id_agent_id_created_at_id_idx
    on threads using btree (user_id, agent_id, created_at desc, id desc);

create index threads_user_id_created_at_id_idx
    on threads using btree (user_id, created_at desc, id desc)
    where deleted_at is null;

create trigger threads_audit
    after insert or delete or update on threads
    for each row
    when (current_user <> 'crafely_encryption'::name)
    execute function audit_change('threads');

create trigger threads_audit_truncate
    after truncate on threads
    for each statement
    execute function audit_change('threads');

create trigger threads_encryption_audit
    after update on threads
    for each row
    when (current_user = 'crafely_encryption'::name)
    execute function audit_change('threads', 'instructions');

create trigger threads_set_updated_at
    before update on threads
    for each row
    when (old.* is distinct from new.* and current_user <> 'crafely_encryption'::name)
    execute function set_updated_at();

alter table threads enable row level security;
alter table threads force row level security;

create policy threads_backup on threads
    for select
    to crafely_backup
    using (true);

create policy threads_encryption on threads
    to crafely_encryption
    using (true)
    with check (true);

create policy threads_own on threads
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

grant insert (id, name, storage_id, instructions, model, user_id, agent_id), select, update (name, storage_id,
    instructions, model, deleted_at, agent_id) on threads to crafely_app;
grant select on threads to crafely_backup;
grant select (id, instructions), update (instructions) on threads to crafely_encryption;

create table usage (
    id character varying(255) default concat('use_', gen_random_uuid()) not null,
    created_at timestamp with time zone default now() not null,
    api_key_id character varying(255) not null,
    user_id text not null,
    provider text,
    model text,
    type text,
    tokens_in integer,
    tokens_out integer,
    tokens_total integer,
    cost numeric(20,12),
    currency text default 'usd'::text,
    metadata jsonb,
    event_id text,
    constraint usage_pkey primary key (id, created_at),
    constraint usage_user_id_api_key_id_fkey foreign key (user_id, api_key_id) references api_keys(user_id, id),
    constraint usage_currency_check check (currency ~ '^[a-z]{3}$'::text),
    constraint usage_event_id_check check (length(event_id) >= 1 and length(event_id) <= 255),
    constraint usage_metadata_check check (jsonb_typeof(metadata) = 'object'::text),
    constraint usage_model_check check (length(model) >= 1 and length(model) <= 255),
    constraint usage_provider_check check (length(provider) >= 1 and length(provider) <= 255),
    constraint usage_tokens_in_tokens_out_tokens_total_cost_check check (least(tokens_in::numeric, tokens_out::numeric,
        tokens_total::numeric, cost) >= 0::numeric or greatest(tokens_in::numeric, tokens_out::numeric,
        tokens_total::numeric, cost) <= 0::numeric),
    constraint usage_type_check check (length(type) >= 1 and length(type) <= 255)
)
partition by range (created_at);

comment on table usage is 'API usage, append-only, partitioned by month on created_at.';

create index usage_api_key_id_created_at_id_idx on usage using btree (api_key_id, created_at desc, id desc);

create index usage_user_id_created_at_id_idx on usage using btree (user_id, created_at desc, id desc);

create trigger usage_audit
    after delete or update on usage
    for each row
    execute function audit_change('usage');

create trigger usage_audit_truncate
    after truncate on usage
    for each statement
    execute function audit_change('usage');

alter table usage enable row level security;
alter table usage force row level security;

create policy usage_backup on usage
    for select
    to crafely_backup
    using (true);

create policy usage_own on usage
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

create policy usage_record on usage
    for insert
    to crafely_meter
    with check (true);

grant insert on usage to crafely_meter;
grant insert, select on usage to crafely_app;
grant select on usage to crafely_backup;

create table usage_daily (
    user_id text not null,
    day date not null,
    provider text,
    model text,
    type text,
    currency text,
    records bigint not null,
    tokens_in bigint not null,
    tokens_out bigint not null,
    tokens_total bigint not null,
    cost numeric(30,12) not null,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    constraint usage_daily_user_id_day_provider_model_type_currency_key unique nulls not distinct (user_id, day,
        provider, model, type, currency)
)
with (fillfactor=70);

comment on table usage_daily is 'Sums of usage by UTC day; kept by the statement that inserts usage.';

create index usage_daily_day_user_id_idx on usage_daily using btree (day, user_id);

create index usage_daily_provider_model_day_idx on usage_daily using btree (provider, model, day);

create trigger usage_daily_set_updated_at
    before update on usage_daily
    for each row
    when (new.updated_at is distinct from now())
    execute function set_updated_at();

alter table usage_daily enable row level security;
alter table usage_daily force row level security;

create policy usage_daily_admin on usage_daily
    for select
    to crafely_admin
    using (true);

create policy usage_daily_backup on usage_daily
    for select
    to crafely_backup
    using (true);

create policy usage_daily_own on usage_daily
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

create policy usage_daily_record on usage_daily
    to crafely_meter
    using (true)
    with check (true);

grant insert (user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost),
    select, update (records, tokens_in, tokens_out, tokens_total, cost, updated_at) on usage_daily to crafely_app,
    crafely_meter;
grant select on usage_daily to crafely_admin, crafely_backup;

create table usage_default partition of usage default;

alter table usage_default enable row level security;
alter table usage_default force row level security;

create policy usage_default_move on usage_default
    to current_user
    using (true)
    with check (true);

create table usage_drops (
    month date not null,
    created_at timestamp with time zone default now() not null,
    constraint usage_drops_pkey primary key (month),
    constraint usage_drops_month_check check (extract(day from month) = 1::numeric)
);

comment on table usage_drops is 'Months whose records of usage were dropped by retention; their daily sums are kept.';

grant select on usage_drops to crafely_backup;
grant select (month) on usage_drops to crafely_app;

create table usage_events (
    user_id text not null,
    event_id text not null,
    usage_id character varying(255) not null,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    constraint usage_events_pkey primary key (user_id, event_id)
);

comment on table usage_events is 'Event ids already counted, for the window in which a retry is recognised.';

create index usage_events_created_at_idx on usage_events using brin (created_at);

create trigger usage_events_set_updated_at
    before update on usage_events
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table usage_events enable row level security;
alter table usage_events force row level security;

create policy usage_events_backup on usage_events
    for select
    to crafely_backup
    using (true);

create policy usage_events_own on usage_events
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

create policy usage_events_record on usage_events
    to crafely_meter
    using (true)
    with check (true);

create policy usage_events_retention on usage_events
    to crafely_admin
    using (true);

grant delete, select (created_at) on usage_events to crafely_admin;
grant insert (user_id, event_id, usage_id), select on usage_events to crafely_app, crafely_meter;
grant select on usage_events to crafely_backup;

create table user_subscriptions (
    id character varying(255) default concat('sub_', gen_random_uuid()) not null,
    status text default 'active'::text not null,
    start_date timestamp with time zone default now() not null,
    end_date timestamp with time zone,
    created_at timestamp with time zone default now() not null,
    updated_at timestamp with time zone default now() not null,
    user_id text not null,
    package_id character varying(255) not null,
    constraint user_subscriptions_pkey primary key (id),
    constraint user_subscriptions_package_id_fkey foreign key (package_id) references packages(id),
    constraint user_subscriptions_end_date_check check (end_date >= start_date),
    constraint user_subscriptions_status_check check (status = any (array['active'::text, 'cancelled'::text,
        'expired'::text])),
    constraint user_subscriptions_user_id_check check (user_id <> ''::text)
);

comment on table user_subscriptions is 'Subscriptions; ended ones stay, as cancelled or expired.';

create index user_subscriptions_end_date_idx on user_subscriptions using btree (end_date) where status = 'active'::text;

create index user_subscriptions_package_id_idx on user_subscriptions using btree (package_id);

create index user_subscriptions_user_id_created_at_id_idx
    on user_subscriptions using btree (user_id, created_at desc, id desc);

create unique index user_subscriptions_user_id_package_id_idx
    on user_subscriptions using btree (user_id, package_id)
    where status = 'active'::text;

create trigger user_subscriptions_audit
    after insert or delete or update on user_subscriptions
    for each row
    execute function audit_change('user_subscriptions');

create trigger user_subscriptions_audit_truncate
    after truncate on user_subscriptions
    for each statement
    execute function audit_change('user_subscriptions');

create trigger user_subscriptions_set_updated_at
    before update on user_subscriptions
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table user_subscriptions enable row level security;
alter table user_subscriptions force row level security;

create policy user_subscriptions_admin on user_subscriptions
    to crafely_admin
    using (true)
    with check (true);

create policy user_subscriptions_backup on user_subscriptions
    for select
    to crafely_backup
    using (true);

create policy user_subscriptions_lookup on user_subscriptions
    for select
    to crafely_auth
    using (true);

create policy user_subscriptions_own on user_subscriptions
    to crafely_app
    using (user_id = (( select current_user_id() as current_user_id)))
    with check (user_id = (( select current_user_id() as current_user_id)));

grant insert (start_date, end_date, user_id, package_id), select, update (status, end_date) on user_subscriptions to
    crafely_admin, crafely_app;
grant select on user_subscriptions to crafely_backup;
grant select (status, start_date, end_date, user_id, package_id) on user_subscriptions to crafely_auth;

create function append_audit_seal(last audit_seals, seal audit_seals)
    returns audit_seals
    language plpgsql
    set search_path to 'public', 'pg_temp'
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

revoke all on function append_audit_seal(audit_seals,audit_seals) from public;

comment on function append_audit_seal(audit_seals,audit_seals) is
    'Appends a seal to the chain, after the last one; gives it as it was stored. The caller holds the lock.';

create function drop_audit_month(months_kept integer)
    returns date
    language plpgsql
    security definer
    set lock_timeout to '500ms'
    set search_path to 'public', 'pg_temp'
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

revoke all on function drop_audit_month(integer) from public;

grant execute on function drop_audit_month(integer) to crafely_admin;

comment on function drop_audit_month(integer) is
    'Drops the oldest month of the trail before the months that are kept; gives it, or null where there is none.';

create function drop_usage_month(month date)
    returns boolean
    language plpgsql
    security definer
    set lock_timeout to '200ms'
    set search_path to 'public', 'pg_temp'
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

revoke all on function drop_usage_month(date) from public;

grant execute on function drop_usage_month(date) to crafely_admin;

comment on function drop_usage_month(date) is
    'Drops the records of a month that is over for good; false where there are none. Their daily sums stay.';

create function restart_audit_seals(last audit_seals)
    returns audit_seals
    language plpgsql
    set search_path to 'public', 'pg_temp'
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

revoke all on function restart_audit_seals(audit_seals) from public;

comment on function restart_audit_seals(audit_seals) is
    'Ends the old cluster''s part of the chain; gives the last seal. The caller holds the lock.';

create function seal_audit_batch(last audit_seals, before_transaction_id xid8, before_id bigint)
    returns audit_seals
    language plpgsql
    set search_path to 'public', 'pg_temp'
    set enable_seqscan to 'off'
    set enable_sort to 'off'
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

revoke all on function seal_audit_batch(audit_seals,xid8,bigint) from public;

comment on function seal_audit_batch(audit_seals,xid8,bigint) is
    'Seals the rows after the last seal, at most 10,000; null where there is none. The caller holds the lock.';

create function seal_audit_log(out row_count integer, out seal_id bigint, out head text)
    returns record
    language plpgsql
    security definer
    set lock_timeout to '1s'
    set search_path to 'public', 'pg_temp'
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

revoke all on function seal_audit_log() from public;

grant execute on function seal_audit_log() to crafely_admin;

comment on function seal_audit_log() is
    'Seals what can be sealed of the trail, at most 10,000 rows; after a restore, all of it. Gives the chain''s head.';

grant usage on schema public to crafely_admin, crafely_app, crafely_auth, crafely_backup, crafely_encryption,
    crafely_meter, crafely_monitor;
