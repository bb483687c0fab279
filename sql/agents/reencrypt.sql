-- sql/agents/reencrypt.sql
-- Puts texts in place of the same ones sealed otherwise, of many agents at once; whoever was changed meanwhile stays.
-- returns: count
-- role: crafely_encryption
-- uses: agents_pkey
update agents a
set instructions = r.instructions,
    context = r.context
from jsonb_to_recordset(:records::jsonb) as r (
    id text, old_instructions text, old_context text, instructions text, context text
)
where a.id = r.id
    and a.instructions = r.old_instructions
    and a.context is not distinct from r.old_context;
