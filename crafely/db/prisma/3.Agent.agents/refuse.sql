insert into crafely_import.refused (table_name, id, column_name, rule)
select 'Agent', s.id, r.column_name, r.rule
from crafely_import.agents as s
cross join lateral (
    values
    ('id', 'expected 1 to 255 characters', s.id = ''),
    ('name', 'expected 1 to 255 characters', length(s.name) not between 1 and 255),
    (
        'tools',
        'expected a JSON array or null',
        s.tools is not null
        and coalesce(jsonb_typeof(crafely_import.as_json(s.tools)), '') <> 'array'
    ),
    ('userId', 'expected a user id, not an empty text', s.user_id = ''),
    ('createdAt', 'expected a time in the years 1 to 9999', s.created_at not between '0001-01-01' and '9999-12-31'),
    ('updatedAt', 'expected a time in the years 1 to 9999', s.updated_at not between '0001-01-01' and '9999-12-31'),
    ('deletedAt', 'expected a time in the years 1 to 9999', s.deleted_at not between '0001-01-01' and '9999-12-31')
) as r (column_name, rule, is_broken)
where r.is_broken;
