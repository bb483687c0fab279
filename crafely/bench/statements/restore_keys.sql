update api_keys
set active = true
where not active;
