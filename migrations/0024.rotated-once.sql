-- transactional: false
-- A key is replaced by one other at most, so that keys that replaced each other are a line: whoever rotates one key
-- twice at the same moment gets one new key and one refusal. It is the foreign key's own side, too.
create unique index concurrently api_keys_user_id_rotated_from_idx
    on api_keys (user_id, rotated_from)
    where rotated_from is not null;
