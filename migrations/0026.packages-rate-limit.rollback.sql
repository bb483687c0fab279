-- Forgets what packages allow in requests a minute.
revoke select (id, rate_limit) on packages from crafely_auth;
revoke select (user_id, package_id, status, start_date, end_date) on user_subscriptions from crafely_auth;
drop policy user_subscriptions_lookup on user_subscriptions;
-- This undoes what added it.
-- squawk-ignore ban-drop-column
alter table packages drop column rate_limit;
