-- Keys, as the source has them.
select
    id,
    key_id,
    hashed_key,
    name,
    prefix,
    permissions,
    active,
    created_at at time zone 'utc' as created_at,
    updated_at at time zone 'utc' as updated_at,
    last_used_at at time zone 'utc' as last_used_at,
    user_id
from api_keys
