-- sql/monitor/ensure_partitions.sql
-- Housekeeping: makes the months that usage and the audit trail will need. Gives how many it made.
-- returns: one Partitions
-- role: crafely_admin
select
    ensure_month_partitions('usage', :months_ahead) as usage,
    ensure_month_partitions('audit_log', :months_ahead) as audit_log;
