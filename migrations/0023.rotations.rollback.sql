-- The way from a key to the one that replaced it has its index again, which lets several replace one.
create index concurrently api_keys_user_id_rotated_from_idx
    on api_keys (user_id, rotated_from)
    where rotated_from is not null;
