-- sql/threads/update.sql
-- Changes what :changes names, a JSON object of columns; what it does not name stays. No row where there is no such
-- thread, no such live agent to put it under, or it is none of these versions.
-- returns: maybe Thread
-- uses: threads_pkey, agents_user_id_id_key
update threads t
set (name, storage_id, instructions, model, agent_id) = (
    -- The row itself is the base: a column that :changes does not name keeps its value.
    select c.name, c.storage_id, c.instructions, c.model, c.agent_id
    from jsonb_populate_record(t, :changes::jsonb) as c
)
where id = :id
    and user_id = :user_id
    and deleted_at is null
    and (:versions::timestamptz[] is null or updated_at = any(:versions))
    and (
        :changes::jsonb ->> 'agent_id' is null
        or exists (
            select
            from agents
            where id = :changes::jsonb ->> 'agent_id'
                and user_id = :user_id
                -- Not «is null»: see create.sql.
                and coalesce(deleted_at, 'infinity') = 'infinity'
        )
    )
returning id, agent_id, name, storage_id, instructions, model, created_at, updated_at;
