-- sql/encryption_keys/retire.sql
-- Notes that no text is sealed with a key any more.
-- returns: count
-- role: crafely_encryption
-- uses: encryption_keys_pkey
update encryption_keys
set retired_at = now()
where id = :id
    and retired_at is null;
