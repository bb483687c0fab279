select key_id
from api_keys
where id = $1;
