-- Answers that are kept for a day: whoever did not get his sends his request again, with the same Idempotency-Key, and
-- is answered the same, and nothing is done twice. The row is written in the transaction of what the request has done,
-- so that either both are there or neither is.
create table idempotency_keys (
    user_id text not null,
    -- The client's own word for its request.
    key text not null,
    -- SHA-256 of the request: the same key with another one is a mistake.
    fingerprint text not null,
    status integer not null,
    location text,
    etag text,
    -- JSON, without any secret, and sealed where the server has keys for what is stored.
    body text not null,
    created_at timestamptz not null default now(),

    constraint idempotency_keys_pkey primary key (user_id, key),
    constraint idempotency_keys_user_id_check check (user_id <> ''),
    constraint idempotency_keys_key_check check (length(key) between 1 and 255),
    constraint idempotency_keys_status_check check (status between 200 and 299),
    constraint idempotency_keys_body_check check (length(body) <= 4194304)
);

comment on table idempotency_keys is 'Answers to requests with an Idempotency-Key, for when one is sent again.';

-- Housekeeping forgets the oldest.
create index idempotency_keys_created_at_idx on idempotency_keys (created_at);

alter table idempotency_keys enable row level security;
alter table idempotency_keys force row level security;

create policy idempotency_keys_own on idempotency_keys
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy idempotency_keys_retention on idempotency_keys
    to crafely_admin
    using (true);

create policy idempotency_keys_backup on idempotency_keys
    for select
    to crafely_backup
    using (true);

grant select (user_id, key, fingerprint, status, location, etag, body) on idempotency_keys to crafely_app;
grant insert (user_id, key, fingerprint, status, location, etag, body) on idempotency_keys to crafely_app;
-- Housekeeping sees how old they are, and nothing else.
grant select (created_at), delete on idempotency_keys to crafely_admin;
grant select on idempotency_keys to crafely_backup;
