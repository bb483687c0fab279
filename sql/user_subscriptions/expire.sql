-- sql/user_subscriptions/expire.sql
-- Housekeeping: marks every active subscription whose end has come.
-- returns: count
-- role: crafely_admin
-- uses: user_subscriptions_end_date_idx
update user_subscriptions
set status = 'expired'
where status = 'active'
    and end_date <= now();
