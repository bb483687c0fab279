-- Several keys may say that they replace the same one.
drop index concurrently api_keys_user_id_rotated_from_idx;
