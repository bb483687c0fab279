-- sql/threads/list_for_agent.sql
-- One agent's live threads, newest first, from a position on; without their instructions.
-- returns: many ThreadSummary
-- reads: replica
-- uses: threads_user_id_agent_id_created_at_id_idx
select id, agent_id, name, storage_id, model, created_at, updated_at
from threads
where agent_id = :agent_id
    and user_id = :user_id
    and deleted_at is null
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
