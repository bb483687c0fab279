-- sql/api_keys/update.sql
-- Changes what :changes names, a JSON object of columns; what it does not name stays. A revoked key stays revoked.
-- No row where it is none of these versions.
-- returns: maybe ApiKey
-- uses: api_keys_user_id_id_key
update api_keys k
set name = case when :changes::jsonb ? 'name' then c.name else k.name end,
    permissions = case when :changes::jsonb ? 'permissions' then c.permissions else k.permissions end,
    expires_at = case when :changes::jsonb ? 'expires_at' then c.expires_at else k.expires_at end,
    rate_limit = case when :changes::jsonb ? 'rate_limit' then c.rate_limit else k.rate_limit end
from jsonb_to_record(:changes::jsonb) as c (
    name text, permissions text[], expires_at timestamptz, rate_limit integer
)
where k.id = :id
    and k.user_id = :user_id
    and (:versions::timestamptz[] is null or k.updated_at = any(:versions))
returning
    k.id, k.key_id, k.name, k.prefix, k.permissions, k.active, k.expires_at, k.rate_limit, k.rotated_from,
    k.last_used_at, k.created_at, k.updated_at;
