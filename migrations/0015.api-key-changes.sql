-- Tells every serving process which key has changed, so that what it remembers of verified keys is never older than
-- the database says: a revoked key is refused within milliseconds, in every process, whoever revoked it and by
-- whatever means. A notification is sent when the change commits, and never when it does not.
--
-- Last uses are no change of a key, and a new key is one that nobody remembers yet.
create function notify_api_key_change()
    returns trigger
    language plpgsql
as $$
begin
    perform pg_notify('crafely_api_keys', old.key_id);
    return null;
end
$$;

comment on function notify_api_key_change() is
    'Trigger: tells the listeners of crafely_api_keys the key_id of a key that has changed or is gone.';

revoke all on function notify_api_key_change() from public;

create trigger api_keys_notify
    after delete or update of
        key_id, hashed_key, permissions, active, user_id, expires_at, rate_limit
    on api_keys
    for each row
    execute function notify_api_key_change();

-- All of them at once: no key is named.
create function notify_api_keys_truncated()
    returns trigger
    language plpgsql
as $$
begin
    perform pg_notify('crafely_api_keys', '');
    return null;
end
$$;

comment on function notify_api_keys_truncated() is
    'Trigger: tells the listeners of crafely_api_keys that every key is gone.';

revoke all on function notify_api_keys_truncated() from public;

create trigger api_keys_notify_truncated
    after truncate on api_keys
    for each statement
    execute function notify_api_keys_truncated();
