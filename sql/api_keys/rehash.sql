-- sql/api_keys/rehash.sql
-- Replaces the hash of a secret that was just verified, when the cost parameters have changed since it was made.
-- returns: count
-- uses: api_keys_user_id_id_key
update api_keys
set hashed_key = :hashed_key
where id = :id
    and user_id = :user_id;
