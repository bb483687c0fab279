-- sql/agents/update.sql
-- Changes what :changes names, a JSON object of columns; what it does not name stays. No row where it is
-- none of these versions.
-- returns: maybe Agent
-- uses: agents_user_id_id_key
update agents a
set (name, instructions, tools, context) = (
    -- The row itself is the base: a column that :changes does not name keeps its value.
    select c.name, c.instructions, c.tools, c.context
    from jsonb_populate_record(a, :changes::jsonb) as c
)
where id = :id
    and user_id = :user_id
    and deleted_at is null
    and (:versions::timestamptz[] is null or updated_at = any(:versions))
returning id, name, instructions, tools, context, created_at, updated_at;
