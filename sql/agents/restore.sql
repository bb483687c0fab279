-- sql/agents/restore.sql
-- Brings a deleted agent back. One that is live stays as it is.
-- returns: maybe Agent
-- uses: agents_user_id_id_key
update agents
set deleted_at = null
where id = :id
    and user_id = :user_id
returning id, name, instructions, tools, context, created_at, updated_at;
