-- sql/api_keys/lookup.sql
-- The keys of these public ids, of any user: who is asking is known only afterwards. Revoked and expired ones come too,
-- so that their holder can be told.
-- returns: many KeyRecord
-- role: crafely_auth
-- uses: api_keys_key_id_hash_idx
select k.id, k.key_id, k.hashed_key, k.user_id, k.permissions, k.active, k.expires_at, k.rate_limit
-- Not «= any(…)», which a hash index answers only by way of a bitmap: a fifth slower for 64 keys.
from unnest(:key_ids::text[]) as asked (key_id)
join api_keys k on k.key_id = asked.key_id;
