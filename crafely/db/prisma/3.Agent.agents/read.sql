-- Agents, deleted ones too.
select
    s.ctid as place,
    s."id" as id,
    s."name" as name,
    s."instructions" as instructions,
    s."tools" as tools,
    s."context" as context,
    s."createdAt" as created_at,
    s."updatedAt" as updated_at,
    s."deletedAt" as deleted_at,
    s."userId" as user_id
from "Agent" as s
