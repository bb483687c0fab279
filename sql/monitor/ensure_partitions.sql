-- sql/monitor/ensure_partitions.sql
-- Housekeeping: makes the months that usage and the audit trail will need. Gives how many it made.
-- returns: one Partitions
-- role: crafely_admin
-- not null: audit_log, usage
select
    -- In the order in which a transaction that makes a key and records usage comes by: no waiting in a circle.
    ensure_month_partitions('audit_log', :months_ahead) as audit_log,
    ensure_month_partitions('usage', :months_ahead) as usage;
