-- transactional: false
-- A key is looked up by one value and nothing else, at every request that no process remembers. A hash index finds it
-- in two pages whatever the size of the table; the unique index, a B-tree, takes three at ten thousand keys and five at
-- ten million, and is a quarter slower for a batch. It stays, for a hash index cannot be unique.
create index concurrently api_keys_key_id_hash_idx on api_keys using hash (key_id);
