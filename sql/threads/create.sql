-- sql/threads/create.sql
-- A new thread, alone or under one of the user's live agents. No row: there is no such agent. Its id is the
-- application's: its text is sealed with it.
-- returns: maybe Thread
-- uses: agents_user_id_id_key
insert into threads (id, name, storage_id, instructions, model, user_id, agent_id)
select :id, :name, :storage_id, :instructions, :model, :user_id, :agent_id::text
where :agent_id::text is null
    or exists (
        select
        from agents
        where id = :agent_id::text
            and user_id = :user_id
            -- Not «is null»: the list's index, of live agents alone, would do then, and is read for all of a user's.
            and coalesce(deleted_at, 'infinity') = 'infinity'
    )
returning id, agent_id, name, storage_id, instructions, model, created_at, updated_at;
