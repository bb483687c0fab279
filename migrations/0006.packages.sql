-- Packages: what a user can subscribe to. They belong to nobody, so there is no row-level security: everybody may read
-- them, only crafely_admin writes.
create table packages (
    id varchar(255) primary key default concat('pkg_', gen_random_uuid()),
    name text not null,
    description text,
    -- Money is never a float.
    price numeric(12, 2) not null,
    features text[] not null default '{}',
    "interval" text not null default 'month',
    active boolean not null default true,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),

    constraint packages_name_key unique (name),
    constraint packages_name_check check (length(name) between 1 and 255),
    constraint packages_price_check check (price >= 0),
    constraint packages_features_check check (cardinality(features) <= 100),
    constraint packages_interval_check check ("interval" in ('month', 'year'))
);

comment on table packages is 'Subscription packages; a package that is no longer sold has active = false.';

-- Packages newest first; there are few, and this keeps pages stable.
create index packages_created_at_id_idx on packages (created_at desc, id desc);

create trigger packages_set_updated_at
    before update on packages
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

grant select on packages to crafely_app, crafely_admin, crafely_backup;
grant insert (name, description, price, features, "interval", active) on packages to crafely_admin;
grant update (name, description, price, features, "interval", active) on packages to crafely_admin;
