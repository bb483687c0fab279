-- Makes the database one of the bench's, and says what is in it.
create schema crafely_bench

create table seed (
    -- What all its keys have in common: a secret that nobody else knows.
    secret text not null,
    hashed_key text not null,
    keys bigint not null default 0,
    usage_records bigint not null default 0,
    -- The last moment of the usage.
    usage_until timestamptz not null default date_trunc('day', now(), 'utc') + interval '18 hours'
);
