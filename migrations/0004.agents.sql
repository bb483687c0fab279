-- Agents: a name, instructions, tools and context. Deleting one sets deleted_at, so that it can be restored.
create table agents (
    id varchar(255) primary key default concat('agnt_', gen_random_uuid()),
    name text not null,
    instructions text not null,
    -- An array of tool descriptions; the source kept the same thing as a JSON string.
    tools jsonb,
    context text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    user_id text not null,

    -- The target of composite foreign keys: a thread can only refer to an agent of its own user.
    constraint agents_user_id_id_key unique (user_id, id),
    constraint agents_user_id_check check (user_id <> ''),
    constraint agents_name_check check (length(name) between 1 and 255),
    constraint agents_tools_check check (jsonb_typeof(tools) = 'array')
);

comment on table agents is 'AI agents, soft-deleted by deleted_at.';

-- A user's live agents, newest first.
create index agents_user_id_created_at_id_idx on agents (user_id, created_at desc, id desc) where deleted_at is null;

-- A user's live agents whose name begins with a word, whatever its case. Collation "C" lets a prefix be a range.
create index agents_user_id_lower_name_idx on agents (user_id, (lower(name) collate "C")) where deleted_at is null;

create trigger agents_set_updated_at
    before update on agents
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table agents enable row level security;
alter table agents force row level security;

create policy agents_own on agents
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy agents_backup on agents
    for select
    to crafely_backup
    using (true);

grant select on agents to crafely_app, crafely_backup;
grant insert (name, instructions, tools, context, user_id) on agents to crafely_app;
grant update (name, instructions, tools, context, deleted_at) on agents to crafely_app;
