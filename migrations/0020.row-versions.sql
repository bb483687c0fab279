-- The moment of a row's last change tells its versions apart: clients name the one that they have seen, and a change of
-- another one is refused (If-Match). So no two may have the same: a transaction that began earlier and comes later, two
-- changes in one transaction, and a clock that was set back must not give a moment again.
create or replace function set_updated_at()
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
