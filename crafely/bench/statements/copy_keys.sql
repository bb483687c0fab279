copy api_keys (id, key_id, hashed_key, name, prefix, permissions, active, user_id) from stdin;
