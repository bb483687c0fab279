-- sql/agents/list_to_reencrypt.sql
-- Agents, deleted ones too, with a text that is not sealed with the key :key_id (off: not in clear), from an id on.
-- returns: many SealedAgent
-- role: crafely_encryption
-- uses: agents_pkey
select id, instructions, context
from agents
where id > :after
    and (
        sealed_with(instructions) <> :key_id
        or sealed_with(context) <> :key_id
    )
order by id
limit :take;
