-- sql/api_keys/get.sql
-- One of the user's keys, active or not.
-- returns: maybe ApiKey
-- reads: replica
-- uses: api_keys_user_id_id_key
select
    id, key_id, name, prefix, permissions, active, expires_at, rate_limit, rotated_from, last_used_at, created_at,
    updated_at
from api_keys
where id = :id
    and user_id = :user_id;
