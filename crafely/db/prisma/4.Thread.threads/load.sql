-- The texts came here sealed.
insert into threads (
    id, name, storage_id, instructions, model, created_at, updated_at, deleted_at, user_id, agent_id
)
select
    s.id,
    s.name,
    s.storage_id,
    s.instructions,
    s.model,
    s.created_at at time zone 'utc',
    s.updated_at at time zone 'utc',
    s.deleted_at at time zone 'utc',
    s.user_id,
    s.agent_id
from crafely_import.threads as s
where not exists (
    select
    from crafely_import.refused as r
    where r.table_name = 'Thread'
        and r.id = s.id
);
