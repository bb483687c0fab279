-- API keys. A request is authenticated by key_id, the public half of the token; the secret half is stored only as an
-- argon2id hash, which no role but crafely_auth can read.
create table api_keys (
    id varchar(255) primary key default concat('key_', gen_random_uuid()),
    key_id text not null,
    hashed_key text not null,
    name text,
    prefix text,
    permissions text[] not null default '{}',
    active boolean not null default true,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    last_used_at timestamptz,
    user_id text not null,
    expires_at timestamptz,
    -- The key this one replaces. The two overlap until the old one expires.
    rotated_from varchar(255),
    -- Requests a minute; null means the default.
    rate_limit integer,

    constraint api_keys_key_id_key unique (key_id),
    -- The target of composite foreign keys: a row can only refer to a key of its own user.
    constraint api_keys_user_id_id_key unique (user_id, id),
    constraint api_keys_user_id_rotated_from_fkey
        foreign key (user_id, rotated_from) references api_keys (user_id, id),
    constraint api_keys_user_id_check check (user_id <> ''),
    constraint api_keys_name_check check (length(name) between 1 and 255),
    constraint api_keys_permissions_check check (cardinality(permissions) <= 64),
    constraint api_keys_rate_limit_check check (rate_limit > 0)
)
-- Room on the page for last_used_at, which changes often and is in no index: such updates stay on their page.
with (fillfactor = 90);

comment on table api_keys is 'API keys; revoked ones stay, with active = false.';
comment on column api_keys.key_id is 'The public half of the token: 16 base62 characters.';
comment on column api_keys.hashed_key is 'argon2id of the secret half, in PHC format.';

-- A user's active keys, newest first.
create index api_keys_user_id_active_created_at_id_idx on api_keys (user_id, active, created_at desc, id desc);

-- A user's keys, active or not, newest first.
create index api_keys_user_id_created_at_id_idx on api_keys (user_id, created_at desc, id desc);

-- The foreign key's own side.
create index api_keys_user_id_rotated_from_idx on api_keys (user_id, rotated_from) where rotated_from is not null;

-- A touch of last_used_at is no change of the key.
create trigger api_keys_set_updated_at
    before update of
        key_id, hashed_key, name, prefix, permissions, active, user_id, expires_at, rotated_from, rate_limit
    on api_keys
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table api_keys enable row level security;
alter table api_keys force row level security;

create policy api_keys_own on api_keys
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

-- Who is asking is not known before the key is found.
create policy api_keys_lookup on api_keys
    for select
    to crafely_auth, crafely_meter
    using (true);

create policy api_keys_touch on api_keys
    for update
    to crafely_auth
    using (true)
    with check (true);

create policy api_keys_backup on api_keys
    for select
    to crafely_backup
    using (true);

-- hashed_key may be written by its owner's statements and read back by none of them.
grant select (
    id, key_id, name, prefix, permissions, active, created_at, updated_at, last_used_at, user_id, expires_at,
    rotated_from, rate_limit
) on api_keys to crafely_app;
grant insert (key_id, hashed_key, name, prefix, permissions, user_id, expires_at, rotated_from, rate_limit)
    on api_keys to crafely_app;
grant update (hashed_key, name, permissions, active, expires_at, rate_limit) on api_keys to crafely_app;
grant select (id, key_id, hashed_key, user_id, permissions, active, expires_at, rate_limit, last_used_at)
    on api_keys to crafely_auth;
grant update (last_used_at) on api_keys to crafely_auth;
-- Usage is recorded against a key of the same user: the writer must see whose key it is, and nothing else.
grant select (id, user_id) on api_keys to crafely_meter;
grant select on api_keys to crafely_backup;
