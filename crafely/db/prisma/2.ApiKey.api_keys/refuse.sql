-- What a permission may be called is crafely/auth/permissions.py's. Whatever «admin» meant before, here it opens every
-- user's rows, and who holds it may hand it out: nobody gets it by a copy.
insert into crafely_import.refused (table_name, id, column_name, rule)
select 'ApiKey', s.id, r.column_name, r.rule
from crafely_import.api_keys as s
cross join lateral (
    values
    ('id', 'expected 1 to 255 characters', s.id = ''),
    ('keyId', 'expected 1 to 255 characters', length(s.key_id) not between 1 and 255),
    ('name', 'expected 1 to 255 characters or null', length(s.name) not between 1 and 255),
    ('userId', 'expected a user id, not an empty text', s.user_id = ''),
    ('permissions', 'expected at most 64', cardinality(s.permissions) > 64),
    (
        'permissions',
        'expected names such as agents:read, in lowercase, of at most 64 characters',
        array_ndims(s.permissions) > 1
        or exists (
            select
            from unnest(s.permissions) as p (name)
            where (p.name ~ '^(\*|[a-z][a-z0-9-]*(:[a-z][a-z0-9-]*)?)$' and length(p.name) <= 64) is not true
        )
    ),
    (
        'permissions',
        'admin, monitor:read and usage:correct are for administrators: give them here, by name',
        s.permissions && '{admin,monitor:read,usage:correct}'
    ),
    ('createdAt', 'expected a time in the years 1 to 9999', s.created_at not between '0001-01-01' and '9999-12-31'),
    ('updatedAt', 'expected a time in the years 1 to 9999', s.updated_at not between '0001-01-01' and '9999-12-31'),
    ('lastUsedAt', 'expected a time in the years 1 to 9999', s.last_used_at not between '0001-01-01' and '9999-12-31')
) as r (column_name, rule, is_broken)
where r.is_broken;
