-- Subscriptions of users to packages. They end by being cancelled or by their end_date, which housekeeping applies.
create table user_subscriptions (
    id varchar(255) primary key default concat('sub_', gen_random_uuid()),
    status text not null default 'active',
    start_date timestamptz not null default now(),
    end_date timestamptz,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    user_id text not null,
    package_id varchar(255) not null,

    constraint user_subscriptions_package_id_fkey foreign key (package_id) references packages (id),
    constraint user_subscriptions_user_id_check check (user_id <> ''),
    constraint user_subscriptions_status_check check (status in ('active', 'cancelled', 'expired')),
    constraint user_subscriptions_end_date_check check (end_date >= start_date)
);

comment on table user_subscriptions is 'Subscriptions; ended ones stay, as cancelled or expired.';

-- A user's subscriptions, newest first.
create index user_subscriptions_user_id_created_at_id_idx on user_subscriptions (user_id, created_at desc, id desc);

-- At most one active subscription to a package for each user, however many requests arrive at once.
create unique index user_subscriptions_user_id_package_id_idx on user_subscriptions (user_id, package_id)
    where status = 'active';

-- A package's subscriptions, and the foreign key's own side.
create index user_subscriptions_package_id_idx on user_subscriptions (package_id);

-- What housekeeping looks for: active ones whose end has come.
create index user_subscriptions_end_date_idx on user_subscriptions (end_date) where status = 'active';

create trigger user_subscriptions_set_updated_at
    before update on user_subscriptions
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table user_subscriptions enable row level security;
alter table user_subscriptions force row level security;

create policy user_subscriptions_own on user_subscriptions
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy user_subscriptions_admin on user_subscriptions
    to crafely_admin
    using (true)
    with check (true);

create policy user_subscriptions_backup on user_subscriptions
    for select
    to crafely_backup
    using (true);

grant select on user_subscriptions to crafely_app, crafely_admin, crafely_backup;
grant insert (start_date, end_date, user_id, package_id) on user_subscriptions to crafely_app, crafely_admin;
grant update (status, end_date) on user_subscriptions to crafely_app, crafely_admin;
