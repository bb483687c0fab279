-- What an import keeps in the destination until it is complete: how far it has come, and what it could not take. The
-- tables called like ours hold the rows that are being looked at; a crash of the server empties them, and may.
create schema crafely_import;

create table crafely_import.run (
    source text not null,
    began_at timestamptz not null default now(),
    -- The table that the rows went to: another one, after «crafely migrate reset», has none of them.
    destination oid not null
);

create table crafely_import.progress (
    table_name text not null,
    -- The file of the source's table: in another one, rows are at other places.
    filenode bigint not null,
    -- Where the last row that was looked at stands in it; null: none was.
    place tid,
    rows_read bigint not null default 0,
    is_complete boolean not null default false,
    constraint progress_pkey primary key (table_name)
);

create table crafely_import.refused (
    table_name text not null,
    id text not null,
    column_name text not null,
    rule text not null,
    constraint refused_pkey primary key (table_name, id, column_name, rule)
);

create unlogged table crafely_import.packages (
    place tid,
    id text,
    name text,
    description text,
    price double precision,
    features text[],
    "interval" text,
    active boolean,
    created_at timestamp,
    updated_at timestamp
);

create unlogged table crafely_import.api_keys (
    place tid,
    id text,
    key_id text,
    hashed_key text,
    name text,
    prefix text,
    permissions text[],
    active boolean,
    created_at timestamp,
    updated_at timestamp,
    last_used_at timestamp,
    user_id text
);

create unlogged table crafely_import.agents (
    place tid,
    id text,
    name text,
    instructions text,
    tools text,
    context text,
    created_at timestamp,
    updated_at timestamp,
    deleted_at timestamp,
    user_id text
);

create unlogged table crafely_import.threads (
    place tid,
    id text,
    name text,
    storage_id text,
    instructions text,
    model text,
    created_at timestamp,
    updated_at timestamp,
    deleted_at timestamp,
    user_id text,
    agent_id text
);

create unlogged table crafely_import.user_subscriptions (
    place tid,
    id text,
    status text,
    start_date timestamp,
    end_date timestamp,
    created_at timestamp,
    updated_at timestamp,
    user_id text,
    package_id text,
    is_superseded boolean
);

create unlogged table crafely_import.usage (
    place tid,
    id text,
    created_at timestamp,
    api_key_id text,
    user_id text,
    provider text,
    model text,
    type text,
    tokens_in integer,
    tokens_out integer,
    tokens_total integer,
    cost numeric,
    currency text,
    metadata jsonb
);

-- A text as JSON; null where it is none, or none that PostgreSQL can keep.
create function crafely_import.as_json(source text)
    returns jsonb
    language plpgsql
    immutable
as $$
begin
    return source::jsonb;
exception
    when others then return null;
end
$$;
