-- sql/user_subscriptions/cancel.sql
-- Cancels an active subscription, now. No row where there is none, or it has ended before.
-- returns: maybe UserSubscription
-- uses: user_subscriptions_pkey
update user_subscriptions
set status = 'cancelled',
    -- One that had not begun yet ends where it would have begun.
    end_date = greatest(start_date, now())
where id = :id
    and user_id = :user_id
    and status = 'active'
returning id, status, start_date, end_date, user_id, package_id, created_at, updated_at;
