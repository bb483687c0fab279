-- sql/agents/create.sql
-- A new agent.
-- returns: one Agent
insert into agents (name, instructions, tools, context, user_id)
values (:name, :instructions, :tools, :context, :user_id)
returning id, name, instructions, tools, context, created_at, updated_at;
