-- sql/monitor/forget_samples.sql
-- Housekeeping: deletes samples that are older. Gives how many.
-- returns: count
-- role: crafely_admin
-- uses: monitor_samples_created_at_idx
delete from monitor_samples
where created_at < :older_than;
