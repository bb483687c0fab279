-- sql/encryption_keys/count_texts.sql
-- How many texts each key has sealed, by table and column; the key «off» stands for those in clear.
-- returns: many SealedTexts
-- role: crafely_encryption
-- scans: agents, because every text is asked for its key
-- scans: threads, because every text is asked for its key
-- scans: idempotency_keys, because every text is asked for its key
-- not null: key_id
select s.table_name, s.column_name, s.key_id, count(*) as texts
from (
    select 'agents' as table_name, 'instructions' as column_name, sealed_with(instructions) as key_id
    from agents
    union all
    select 'agents', 'context', sealed_with(context)
    from agents
    where context is not null
    union all
    select 'threads', 'instructions', sealed_with(instructions)
    from threads
    where instructions is not null
    union all
    select 'idempotency_keys', 'body', sealed_with(body)
    from idempotency_keys
) s
group by s.table_name, s.column_name, s.key_id
order by s.table_name, s.column_name, s.key_id;
