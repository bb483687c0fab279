-- sql/api_keys/rotate.sql
-- A new key in the place of another: the same name, permissions, limit and end. The old one ends after the overlap, and
-- never later than it would have; without an overlap it is revoked. No row where the old one is not there, has ended,
-- holds other permissions than these, or is none of these versions. That a key is replaced once is the unique index's
-- to say, for who comes second has waited for the row and sees no new ones.
-- returns: maybe ApiKey
-- uses: api_keys_user_id_id_key
with old as (
    select id, name, permissions, user_id, expires_at, rate_limit
    from api_keys
    where id = :id
        and user_id = :user_id
        and active
        and (expires_at is null or expires_at > now())
        and permissions = :permissions
        and (:versions::timestamptz[] is null or updated_at = any(:versions))
    for update
),
ended as (
    update api_keys k
    set active = :overlap_seconds::integer > 0,
        expires_at = least(o.expires_at, now() + :overlap_seconds * interval '1 second')
    from old o
    where k.id = o.id
        and k.user_id = :user_id
)
insert into api_keys (key_id, hashed_key, name, prefix, permissions, user_id, expires_at, rotated_from, rate_limit)
select :key_id, :hashed_key, name, :prefix, permissions, user_id, expires_at, id, rate_limit
from old
returning
    id, key_id, name, prefix, permissions, active, expires_at, rate_limit, rotated_from, last_used_at, created_at,
    updated_at;
