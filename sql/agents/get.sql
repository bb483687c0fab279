-- sql/agents/get.sql
-- One of the user's live agents.
-- returns: maybe Agent
-- reads: replica
-- uses: agents_user_id_id_key
select id, name, instructions, tools, context, created_at, updated_at
from agents
where id = :id
    and user_id = :user_id
    and deleted_at is null;
