-- The texts came here sealed.
insert into agents (id, name, instructions, tools, context, created_at, updated_at, deleted_at, user_id)
select
    s.id,
    s.name,
    s.instructions,
    s.tools::jsonb,
    s.context,
    s.created_at at time zone 'utc',
    s.updated_at at time zone 'utc',
    s.deleted_at at time zone 'utc',
    s.user_id
from crafely_import.agents as s
where not exists (
    select
    from crafely_import.refused as r
    where r.table_name = 'Agent'
        and r.id = s.id
);
