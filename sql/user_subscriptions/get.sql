-- sql/user_subscriptions/get.sql
-- One of the user's subscriptions, whatever its status.
-- returns: maybe UserSubscription
-- reads: replica
-- uses: user_subscriptions_pkey
select id, status, start_date, end_date, user_id, package_id, created_at, updated_at
from user_subscriptions
where id = :id
    and user_id = :user_id;
