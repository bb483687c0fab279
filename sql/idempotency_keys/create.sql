-- sql/idempotency_keys/create.sql
-- Keeps what is answered to a user's idempotency key, in the transaction of what the request has done.
-- returns: count
insert into idempotency_keys (user_id, key, fingerprint, status, location, etag, body)
values (:user_id, :key, :fingerprint, :status, :location, :etag, :body);
