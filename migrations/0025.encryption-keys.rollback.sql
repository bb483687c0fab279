-- Forgets which keys texts are sealed with. The texts stay as they are: keep the keys, or run «crafely keys reencrypt»
-- with «off» as the first key before this, for the release that comes back reads texts in clear only.
drop trigger threads_encryption_audit on threads;
drop trigger agents_encryption_audit on agents;

create or replace trigger threads_audit
    after insert or update or delete on threads
    for each row
    execute function audit_change('threads');

create or replace trigger agents_audit
    after insert or update or delete on agents
    for each row
    execute function audit_change('agents');

create or replace trigger threads_set_updated_at
    before update on threads
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

create or replace trigger agents_set_updated_at
    before update on agents
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

drop policy threads_encryption on threads;
drop policy agents_encryption on agents;
revoke select (id, instructions), update (instructions) on threads from crafely_encryption;
revoke select (id, instructions, context), update (instructions, context) on agents from crafely_encryption;
revoke insert (id) on threads from crafely_app;
revoke insert (id) on agents from crafely_app;
drop function sealed_with(text);
drop table encryption_keys;

revoke all on schema public from crafely_encryption;

-- The role goes only when no other database of this server still grants it something.
do $$
begin
    drop role crafely_encryption;
exception
    when dependent_objects_still_exist or object_in_use then
        raise notice 'role crafely_encryption stays: another database uses it';
end
$$;
