-- sql/api_keys/lookup.sql
-- The keys of these public ids, of any user: who is asking is known only afterwards. Revoked and expired ones come too,
-- so that their holder can be told.
-- returns: many KeyRecord
-- role: crafely_auth
-- uses: api_keys_key_id_key
select id, key_id, hashed_key, user_id, permissions, active, expires_at, rate_limit
from api_keys
where key_id = any(:key_ids::text[]);
