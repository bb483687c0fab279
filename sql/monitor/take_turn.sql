-- sql/monitor/take_turn.sql
-- Whether this transaction may take the sample of this hour, for nobody else is taking it. One of many workers gets the
-- turn, until its transaction ends.
-- returns: one bool
-- role: crafely_admin
-- not null: taken
select pg_try_advisory_xact_lock(hashtextextended('crafely.monitor_samples', 0)) as taken;
