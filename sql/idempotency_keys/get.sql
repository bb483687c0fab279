-- sql/idempotency_keys/get.sql
-- What was answered to a user's idempotency key, and to which request.
-- returns: maybe IdempotencyKey
-- uses: idempotency_keys_pkey
select fingerprint, status, location, etag, body
from idempotency_keys
where user_id = :user_id
    and key = :key;
