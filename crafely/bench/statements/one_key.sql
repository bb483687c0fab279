-- What whoever asks for one key would write, with the columns of sql/api_keys/lookup.sql; pgbench fills in the key.
select {columns}
from api_keys
where key_id = :key_id;
