-- Usage: one row for every metered call, append-only, by month. A default partition means that no row is ever refused
-- because nobody made its month.
create table usage (
    id varchar(255) not null default concat('use_', gen_random_uuid()),
    created_at timestamptz not null default now(),
    api_key_id varchar(255) not null,
    user_id text not null,
    provider text,
    model text,
    type text,
    tokens_in integer,
    tokens_out integer,
    tokens_total integer,
    -- Twelve places: at the source's six, 20 tokens at $0.02 a million round to nothing.
    cost numeric(20, 12),
    currency text default 'usd',
    metadata jsonb,
    -- The client's own name for the event, which makes a retry harmless; see usage_events.
    event_id text,

    -- A partitioned table's key must contain the column that it is cut by.
    constraint usage_pkey primary key (id, created_at),
    -- Together with the user: usage against somebody else's key cannot be written by anyone.
    constraint usage_user_id_api_key_id_fkey foreign key (user_id, api_key_id) references api_keys (user_id, id),
    constraint usage_provider_check check (length(provider) between 1 and 255),
    constraint usage_model_check check (length(model) between 1 and 255),
    constraint usage_type_check check (length(type) between 1 and 255),
    constraint usage_tokens_in_check check (tokens_in >= 0),
    constraint usage_tokens_out_check check (tokens_out >= 0),
    constraint usage_tokens_total_check check (tokens_total >= 0),
    constraint usage_cost_check check (cost >= 0),
    constraint usage_currency_check check (currency ~ '^[a-z]{3}$'),
    constraint usage_metadata_check check (jsonb_typeof(metadata) = 'object'),
    constraint usage_event_id_check check (length(event_id) between 1 and 255)
)
partition by range (created_at);

comment on table usage is 'API usage, append-only, partitioned by month on created_at.';

-- A user's usage, newest first, over a range of time.
create index usage_user_id_created_at_id_idx on usage (user_id, created_at desc, id desc);

-- A key's usage, newest first, over a range of time.
create index usage_api_key_id_created_at_id_idx on usage (api_key_id, created_at desc, id desc);

create table usage_default partition of usage default;

alter table usage enable row level security;
alter table usage force row level security;
alter table usage_default enable row level security;
alter table usage_default force row level security;

create policy usage_own on usage
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy usage_record on usage
    for insert
    to crafely_meter
    with check (true);

-- Forced row-level security holds for the owner too, who moves rows from here to the month they belong to.
create policy usage_default_move on usage_default
    to current_user
    using (true)
    with check (true);

create policy usage_backup on usage
    for select
    to crafely_backup
    using (true);

grant select on usage to crafely_app, crafely_backup;
grant insert on usage to crafely_app, crafely_meter;

select ensure_month_partitions('usage', 3);
