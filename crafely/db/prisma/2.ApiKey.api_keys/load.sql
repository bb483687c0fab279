insert into api_keys (
    id, key_id, hashed_key, name, prefix, permissions, active, created_at, updated_at, last_used_at, user_id
)
select
    s.id,
    s.key_id,
    s.hashed_key,
    s.name,
    s.prefix,
    s.permissions,
    s.active,
    s.created_at at time zone 'utc',
    s.updated_at at time zone 'utc',
    s.last_used_at at time zone 'utc',
    s.user_id
from crafely_import.api_keys as s
where not exists (
    select
    from crafely_import.refused as r
    where r.table_name = 'ApiKey'
        and r.id = s.id
);
