-- Forgets the seals: what was altered before this is not found any more.
drop function drop_audit_month(integer);
drop function seal_audit_log();
drop function restart_audit_seals(audit_seals);
drop function seal_audit_batch(audit_seals, xid8, bigint);
drop function append_audit_seal(audit_seals, audit_seals);
drop policy audit_log_seal on audit_log;
drop table audit_seals;
alter table audit_log drop column transaction_id;
