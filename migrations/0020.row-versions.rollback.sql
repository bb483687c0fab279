-- Two versions of a row may have the same updated_at again.
create or replace function set_updated_at()
    returns trigger
    language plpgsql
as $$
begin
    new.updated_at := now();
    return new;
end
$$;

comment on function set_updated_at() is 'Trigger: stamps updated_at on a row that changes.';
