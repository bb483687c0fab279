-- sql/threads/list_to_reencrypt.sql
-- Threads, deleted ones too, with instructions that are not sealed with the key :key_id (off: not in clear), from an id
-- on.
-- returns: many SealedThread
-- role: crafely_encryption
-- uses: threads_pkey
-- not null: instructions
select id, instructions
from threads
where id > :after
    and sealed_with(instructions) <> :key_id
order by id
limit :take;
