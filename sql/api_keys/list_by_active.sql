-- sql/api_keys/list_by_active.sql
-- The user's active (or revoked) keys, newest first, from a position on; if asked for, only those whose end has come,
-- or has not.
-- returns: many ApiKey
-- reads: replica
-- uses: api_keys_user_id_active_created_at_id_idx
select
    id, key_id, name, prefix, permissions, active, expires_at, rate_limit, rotated_from, last_used_at, created_at,
    updated_at
from api_keys
where user_id = :user_id
    and active = :active
    and (:expired::boolean is null or (coalesce(expires_at, 'infinity') <= now()) = :expired)
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
