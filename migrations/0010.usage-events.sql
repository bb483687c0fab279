-- The ledger of the clients' event ids. A unique constraint on a partitioned table must contain created_at, so it could
-- not stop the same event from being counted in two months: this small table can.
create table usage_events (
    user_id text not null,
    event_id text not null,
    usage_id varchar(255) not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),

    constraint usage_events_pkey primary key (user_id, event_id)
);

comment on table usage_events is 'Event ids already counted, for the window in which a retry is recognised.';

-- Rows arrive in order of time, so a few pages of summary find the old ones for housekeeping.
create index usage_events_created_at_idx on usage_events using brin (created_at);

create trigger usage_events_set_updated_at
    before update on usage_events
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table usage_events enable row level security;
alter table usage_events force row level security;

create policy usage_events_own on usage_events
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy usage_events_record on usage_events
    to crafely_meter
    using (true)
    with check (true);

create policy usage_events_retention on usage_events
    to crafely_admin
    using (true);

create policy usage_events_backup on usage_events
    for select
    to crafely_backup
    using (true);

grant select on usage_events to crafely_app, crafely_meter, crafely_backup;
grant insert (user_id, event_id, usage_id) on usage_events to crafely_app, crafely_meter;
-- Housekeeping forgets events that are past the window.
grant select (created_at), delete on usage_events to crafely_admin;
