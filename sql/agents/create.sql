-- sql/agents/create.sql
-- A new agent. Its id is the application's: its texts are sealed with it.
-- returns: one Agent
insert into agents (id, name, instructions, tools, context, user_id)
values (:id, :name, :instructions, :tools, :context, :user_id)
returning id, name, instructions, tools, context, created_at, updated_at;
