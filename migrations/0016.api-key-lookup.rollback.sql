-- Lookups go back to the unique index; nothing is lost.
drop index concurrently api_keys_key_id_hash_idx;
