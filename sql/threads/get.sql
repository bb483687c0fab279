-- sql/threads/get.sql
-- One of the user's live threads.
-- returns: maybe Thread
-- reads: replica
-- uses: threads_pkey
select id, agent_id, name, storage_id, instructions, model, created_at, updated_at
from threads
where id = :id
    and user_id = :user_id
    and deleted_at is null;
