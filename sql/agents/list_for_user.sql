-- sql/agents/list_for_user.sql
-- The user's live agents, newest first, from a position on; without what makes them long.
-- returns: many AgentSummary
-- reads: replica
-- uses: agents_user_id_created_at_id_idx
select id, name, created_at, updated_at
from agents
where user_id = :user_id
    and deleted_at is null
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
