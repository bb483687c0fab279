update api_keys
set active = false
where key_id = any($1)
    and active;
