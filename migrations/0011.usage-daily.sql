-- Usage by user, UTC day, provider, model, type and currency: what the analytics read. The statement that inserts
-- usage adds to it in the same transaction, so the two cannot differ; no trigger, so that it also runs on a distributed
-- engine.
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
    cost numeric(30, 12) not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),

    -- Usage may name no provider: two rows without one are still the same group.
    constraint usage_daily_user_id_day_provider_model_type_currency_key
        unique nulls not distinct (user_id, day, provider, model, type, currency)
)
-- The day's rows are added to all day long: room on the page keeps those updates on it.
with (fillfactor = 70);

comment on table usage_daily is 'Sums of usage by UTC day; kept by the statement that inserts usage.';

-- Usage by provider and model, for all users.
create index usage_daily_provider_model_day_idx on usage_daily (provider, model, day);

-- A day's usage of all users.
create index usage_daily_day_user_id_idx on usage_daily (day, user_id);

create trigger usage_daily_set_updated_at
    before update on usage_daily
    for each row
    execute function set_updated_at();

alter table usage_daily enable row level security;
alter table usage_daily force row level security;

create policy usage_daily_own on usage_daily
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy usage_daily_record on usage_daily
    to crafely_meter
    using (true)
    with check (true);

create policy usage_daily_admin on usage_daily
    for select
    to crafely_admin
    using (true);

create policy usage_daily_backup on usage_daily
    for select
    to crafely_backup
    using (true);

grant select on usage_daily to crafely_app, crafely_meter, crafely_admin, crafely_backup;
grant insert (user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost)
    on usage_daily to crafely_app, crafely_meter;
grant update (records, tokens_in, tokens_out, tokens_total, cost) on usage_daily to crafely_app, crafely_meter;
