-- sql/audit_log/head.sql
-- The last seal of the chain: its digest in hexadecimal, its number, and when it was made. None: nothing is sealed yet.
-- returns: maybe Head
-- role: crafely_backup, crafely_admin
-- uses: audit_seals_pkey
select encode(digest, 'hex') as digest, id, created_at
from audit_seals
order by id desc
limit 1;
