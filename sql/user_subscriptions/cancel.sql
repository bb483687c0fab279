-- sql/user_subscriptions/cancel.sql
-- Cancels an active subscription, now. No row where there is none, it has ended before, or it is none
-- of these versions.
-- returns: maybe UserSubscription
-- uses: user_subscriptions_pkey
update user_subscriptions
set status = 'cancelled',
    -- One that had not begun yet ends where it would have begun.
    end_date = greatest(start_date, now())
where id = :id
    and user_id = :user_id
    and status = 'active'
    and (:versions::timestamptz[] is null or updated_at = any(:versions))
returning id, status, start_date, end_date, user_id, package_id, created_at, updated_at;
