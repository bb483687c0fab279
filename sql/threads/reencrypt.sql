-- sql/threads/reencrypt.sql
-- Puts texts in place of the same ones sealed otherwise, of many threads at once; whoever was changed meanwhile stays.
-- returns: count
-- role: crafely_encryption
-- uses: threads_pkey
update threads t
set instructions = r.instructions
from jsonb_to_recordset(:records::jsonb) as r (id text, old_instructions text, instructions text)
where t.id = r.id
    and t.instructions = r.old_instructions;
