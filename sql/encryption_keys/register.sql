-- sql/encryption_keys/register.sql
-- Notes that a key is in use, with a text that it has sealed; a key that is known keeps what it has sealed before.
-- returns: count
-- role: crafely_admin, crafely_encryption
insert into encryption_keys as k (id, check_value)
values (:id, :check_value)
on conflict (id) do update
set retired_at = null
where k.retired_at is not null;
