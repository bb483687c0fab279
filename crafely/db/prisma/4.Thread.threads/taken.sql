-- Threads, as the source has them, but for their texts.
select
    id,
    name,
    storage_id,
    model,
    created_at at time zone 'utc' as created_at,
    updated_at at time zone 'utc' as updated_at,
    deleted_at at time zone 'utc' as deleted_at,
    user_id,
    agent_id
from threads
