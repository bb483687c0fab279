insert into crafely_import.refused (table_name, id, column_name, rule)
select 'Thread', s.id, r.column_name, r.rule
from crafely_import.threads as s
left join agents as a on a.id = s.agent_id and a.user_id = s.user_id
cross join lateral (
    values
    ('id', 'expected 1 to 255 characters', s.id = ''),
    ('name', 'expected 1 to 255 characters', length(s.name) not between 1 and 255),
    ('storageId', 'expected 1 to 255 characters or null', length(s.storage_id) not between 1 and 255),
    ('model', 'expected 1 to 255 characters or null', length(s.model) not between 1 and 255),
    ('userId', 'expected a user id, not an empty text', s.user_id = ''),
    ('agentId', 'expected an agent of the same user that was taken, or null', s.agent_id is not null and a.id is null),
    ('createdAt', 'expected a time in the years 1 to 9999', s.created_at not between '0001-01-01' and '9999-12-31'),
    ('updatedAt', 'expected a time in the years 1 to 9999', s.updated_at not between '0001-01-01' and '9999-12-31'),
    ('deletedAt', 'expected a time in the years 1 to 9999', s.deleted_at not between '0001-01-01' and '9999-12-31')
) as r (column_name, rule, is_broken)
where r.is_broken;
