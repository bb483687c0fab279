-- As a person would in psql.
update api_keys
set active = false
where key_id = $1;
