-- Threads: conversations, with an agent or without one. Deleting one sets deleted_at, so that it can be restored.
create table threads (
    id varchar(255) primary key default concat('thrd_', gen_random_uuid()),
    name text not null,
    storage_id text,
    instructions text,
    model text,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz,
    user_id text not null,
    agent_id varchar(255),

    constraint threads_storage_id_key unique (storage_id),
    -- Together with the user: a thread under somebody else's agent cannot be written by anyone.
    constraint threads_user_id_agent_id_fkey foreign key (user_id, agent_id) references agents (user_id, id),
    constraint threads_user_id_check check (user_id <> ''),
    constraint threads_name_check check (length(name) between 1 and 255),
    constraint threads_storage_id_check check (length(storage_id) between 1 and 255),
    constraint threads_model_check check (length(model) between 1 and 255)
);

comment on table threads is 'Conversation threads, soft-deleted by deleted_at.';

-- A user's live threads, newest first.
create index threads_user_id_created_at_id_idx on threads (user_id, created_at desc, id desc) where deleted_at is null;

-- An agent's threads, newest first, and the foreign key's own side: so it holds deleted ones too.
create index threads_user_id_agent_id_created_at_id_idx on threads (user_id, agent_id, created_at desc, id desc);

create trigger threads_set_updated_at
    before update on threads
    for each row
    when (old.* is distinct from new.*)
    execute function set_updated_at();

alter table threads enable row level security;
alter table threads force row level security;

create policy threads_own on threads
    to crafely_app
    using (user_id = (select current_user_id()))
    with check (user_id = (select current_user_id()));

create policy threads_backup on threads
    for select
    to crafely_backup
    using (true);

grant select on threads to crafely_app, crafely_backup;
grant insert (name, storage_id, instructions, model, user_id, agent_id) on threads to crafely_app;
grant update (name, storage_id, instructions, model, agent_id, deleted_at) on threads to crafely_app;
