-- sql/agents/list_by_name.sql
-- The user's live agents whose name begins so, whatever its case, newest first, from a position on.
-- returns: many AgentSummary
-- reads: replica
-- uses: agents_user_id_created_at_id_idx
select id, name, created_at, updated_at
from agents
where user_id = :user_id
    and deleted_at is null
    -- A prefix as a range: like would need its pattern at planning time. chr(1114111) is the last character there is.
    and lower(name) collate "C" >= lower(:name)
    and lower(name) collate "C" < lower(:name) || chr(1114111)
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
