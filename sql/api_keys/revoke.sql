-- sql/api_keys/revoke.sql
-- Revokes a key for good; the row stays, for the usage that refers to it. Gives the public id of a key that was revoked
-- before, too; no row where it is none of these versions.
-- returns: maybe str
-- uses: api_keys_user_id_id_key
update api_keys
set active = false
where id = :id
    and user_id = :user_id
    and (:versions::timestamptz[] is null or updated_at = any(:versions))
returning key_id;
