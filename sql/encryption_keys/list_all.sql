-- sql/encryption_keys/list_all.sql
-- Every key that texts of this database are or were sealed with.
-- returns: many EncryptionKey
-- role: crafely_admin, crafely_encryption
-- scans: encryption_keys, because it has a row for each key that there ever was
select id, check_value, retired_at
from encryption_keys
order by id;
