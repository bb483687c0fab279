-- sql/idempotency_keys/lock.sql
-- Takes a user's idempotency key for as long as the transaction lasts, if nobody has it; never waits. Two keys may have
-- the same 64 bits: then one of two strangers is told to come back.
-- returns: one bool
-- not null: pg_try_advisory_xact_lock
select pg_try_advisory_xact_lock(hashtextextended(:key, hashtextextended(:user_id, 0)));
