-- sql/threads/restore.sql
-- Brings a deleted thread back. One that is live stays as it is.
-- returns: maybe Thread
-- uses: threads_pkey
update threads
set deleted_at = null
where id = :id
    and user_id = :user_id
returning id, agent_id, name, storage_id, instructions, model, created_at, updated_at;
