-- Agents' and threads' texts are stored sealed, by keys that the database never sees; the values say with which one.
-- This keeps what has to be known of the keys, so that a process with other ones refuses to start before it has read
-- garbage or written what nobody else can read: each key's id, and a known text that it has sealed. And it has the role
-- that seals everything anew with another key: it sees these columns of every row, and nothing else.
create table encryption_keys (
    -- What stands in the values, behind «crafely:1:»; off: texts in clear.
    id text primary key,
    -- A known text, sealed with the key; null: in clear.
    check_value text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    -- When no text was sealed with it any more; null: in use.
    retired_at timestamptz,

    constraint encryption_keys_id_check check (id ~ '^[A-Za-z0-9_.-]{1,32}$'),
    constraint encryption_keys_check_value_check check ((check_value is null) = (id = 'off'))
);

comment on table encryption_keys is 'The keys that texts are or were sealed with: ids and check values, never a key.';

-- What was written before this is in clear. The size is asked for and no row, for row-level security hides all of them
-- from an owner who is no superuser.
insert into encryption_keys (id)
select 'off'
where pg_relation_size('agents') + pg_relation_size('threads') > 0;

create trigger encryption_keys_set_updated_at
    before update on encryption_keys
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

create trigger encryption_keys_audit
    after insert or update or delete on encryption_keys
    for each row
    execute function audit_change('encryption_keys');

do $$
begin
    if not exists (select from pg_roles where rolname = 'crafely_encryption') then
        create role crafely_encryption nologin noinherit nosuperuser nobypassrls;
    end if;
exception
    -- Another database of this server made it in the same moment.
    when duplicate_object or unique_violation then null;
end
$$;

do $$
begin
    if not (select rolsuper from pg_roles where rolname = current_user) then
        grant crafely_encryption to current_user;
    end if;
exception
    -- Another login made the role, for another database. Only «keys reencrypt» needs it.
    when insufficient_privilege then
        raise warning 'to run crafely keys reencrypt as %, grant it crafely_encryption', current_user;
end
$$;

grant usage on schema public to crafely_encryption;

-- A serving process notes the key that it writes with, and looks at all of them.
grant select (id, check_value, retired_at), insert (id, check_value), update (retired_at) on encryption_keys
    to crafely_admin, crafely_encryption;
grant select on encryption_keys to crafely_backup;

-- What a stored text is sealed with: a key's id, or off.
create function sealed_with(stored text)
    returns text
    language sql
    immutable
    parallel safe
    set search_path = pg_catalog, pg_temp
    return case
        when stored is not null
            then coalesce(substring(left(stored, 64) from '^crafely:1:([A-Za-z0-9_.-]{1,32}):'), 'off')
    end;

comment on function sealed_with(text) is 'The id of the key that a stored text is sealed with; off: it is in clear.';

revoke all on function sealed_with(text) from public;
grant execute on function sealed_with(text) to crafely_encryption;

-- The row is part of what a text is sealed with, so the application names it before it is there.
grant insert (id) on agents to crafely_app;
grant insert (id) on threads to crafely_app;

grant select (id, instructions, context), update (instructions, context) on agents to crafely_encryption;
grant select (id, instructions), update (instructions) on threads to crafely_encryption;

create policy agents_encryption on agents
    to crafely_encryption
    using (true)
    with check (true);

create policy threads_encryption on threads
    to crafely_encryption
    using (true)
    with check (true);

-- To seal a text anew is no change of it: updated_at stays. The trail says that it happened; it does not keep both
-- forms of every text, which would be larger than the tables.
create or replace trigger agents_set_updated_at
    before update on agents
    for each row
    when (old.* is distinct from new.* and current_user <> 'crafely_encryption')
    execute function set_updated_at();

create or replace trigger threads_set_updated_at
    before update on threads
    for each row
    when (old.* is distinct from new.* and current_user <> 'crafely_encryption')
    execute function set_updated_at();

create or replace trigger agents_audit
    after insert or update or delete on agents
    for each row
    when (current_user <> 'crafely_encryption')
    execute function audit_change('agents');

create trigger agents_encryption_audit
    after update on agents
    for each row
    when (current_user = 'crafely_encryption')
    execute function audit_change('agents', 'instructions', 'context');

create or replace trigger threads_audit
    after insert or update or delete on threads
    for each row
    when (current_user <> 'crafely_encryption')
    execute function audit_change('threads');

create trigger threads_encryption_audit
    after update on threads
    for each row
    when (current_user = 'crafely_encryption')
    execute function audit_change('threads', 'instructions');
