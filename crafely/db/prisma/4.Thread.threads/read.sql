-- Threads, deleted ones too.
select
    s.ctid as place,
    s."id" as id,
    s."name" as name,
    s."storageId" as storage_id,
    s."instructions" as instructions,
    s."model" as model,
    s."createdAt" as created_at,
    s."updatedAt" as updated_at,
    s."deletedAt" as deleted_at,
    s."userId" as user_id,
    s."agentId" as agent_id
from "Thread" as s
