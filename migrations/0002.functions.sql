-- What every table leans on: who is asking, and when a row changed.

-- The user whose rows the current transaction may see. The application sets crafely.user_id for one transaction only;
-- after such a transaction the setting reads '' and not null, which must mean "nobody" just the same.
create function current_user_id()
    returns text
    language sql
    stable
    parallel safe
    return nullif(current_setting('crafely.user_id', true), '');

comment on function current_user_id() is 'The user of this transaction (setting crafely.user_id); null means nobody.';

-- Prisma kept updatedAt in the client. Here no client can forget it or forge it.
create function set_updated_at()
    returns trigger
    language plpgsql
as $$
begin
    new.updated_at := now();
    return new;
end
$$;

comment on function set_updated_at() is 'Trigger: stamps updated_at on a row that changes.';
