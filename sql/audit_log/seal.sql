-- sql/audit_log/seal.sql
-- Housekeeping: seals the rows of the trail among which none can arrive any more, at most 10,000. Gives how many, and
-- the chain's last seal and digest; nulls when another worker is sealing. After a restore, the whole trail in one call.
-- returns: one Sealed
-- role: crafely_admin
-- not null: row_count
select row_count, seal_id, head
from seal_audit_log();
