-- sql/api_keys/create.sql
-- A new key. The token itself is never here: only its public half and the argon2id hash of its secret half.
-- returns: one ApiKey
insert into api_keys (key_id, hashed_key, name, prefix, permissions, user_id, expires_at, rate_limit)
values (:key_id, :hashed_key, :name, :prefix, :permissions, :user_id, :expires_at, :rate_limit)
returning
    id, key_id, name, prefix, permissions, active, expires_at, rate_limit, rotated_from, last_used_at, created_at,
    updated_at;
