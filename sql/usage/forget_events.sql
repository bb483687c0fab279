-- sql/usage/forget_events.sql
-- Housekeeping: forgets event ids older than the window in which a retry is recognised.
-- returns: count
-- role: crafely_admin
-- across users: because what is too old is so for everybody
-- uses: usage_events_created_at_idx
delete from usage_events
where created_at < :older_than;
