-- sql/api_keys/touch.sql
-- Notes when keys were last used: many keys at once, and never backwards. A touch is no change of the key: it is not
-- audited and leaves updated_at alone.
-- returns: count
-- role: crafely_auth
-- uses: api_keys_pkey
update api_keys k
set last_used_at = t.used_at
from unnest(:ids::text[], :used_at::timestamptz[]) as t (id, used_at)
where k.id = t.id
    and (k.last_used_at is null or k.last_used_at < t.used_at);
