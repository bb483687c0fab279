-- transactional: false
-- The way from a key to the one that replaced it goes by a unique index from the next migration on: a key is replaced
-- once. Nothing has written rotated_from before, so the index that goes is empty, and nothing misses it meanwhile.
drop index concurrently api_keys_user_id_rotated_from_idx;
