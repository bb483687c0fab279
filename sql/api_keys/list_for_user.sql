-- sql/api_keys/list_for_user.sql
-- The user's keys, active or not, newest first, from a position on; if asked for, only those whose end has come, or
-- has not.
-- returns: many ApiKey
-- reads: replica
-- uses: api_keys_user_id_created_at_id_idx
select
    id, key_id, name, prefix, permissions, active, expires_at, rate_limit, rotated_from, last_used_at, created_at,
    updated_at
from api_keys
where user_id = :user_id
    and (:expired::boolean is null or (coalesce(expires_at, 'infinity') <= now()) = :expired)
    and (created_at, id) < (:before, :before_id)
order by created_at desc, id desc
limit :take
offset :skip;
