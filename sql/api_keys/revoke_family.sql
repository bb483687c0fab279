-- sql/api_keys/revoke_family.sql
-- Revokes a key, every key that it replaced and every key that replaced it, one after the other. Gives the public ids
-- of those that were active. Who waits here for a rotation does not see the key that it made: ask until nothing comes.
-- returns: many str
-- uses: api_keys_user_id_id_key, api_keys_user_id_rotated_from_idx
with recursive older as (
    select id, rotated_from
    from api_keys
    where id = :id
        and user_id = :user_id
    union
    select k.id, k.rotated_from
    from older o
    join api_keys k on k.id = o.rotated_from and k.user_id = :user_id
),
family as (
    select id
    from older
    union
    select k.id
    from family f
    join api_keys k on k.rotated_from = f.id and k.user_id = :user_id
)
update api_keys k
set active = false
from family f
where k.id = f.id
    and k.user_id = :user_id
    and k.active
returning k.key_id;
