-- Fifty subscriptions for each of 400 users, two of them active, some without an end.
insert into user_subscriptions (id, status, start_date, end_date, created_at, user_id, package_id)
select
    'sub_' || md5('subscription ' || n)::uuid,
    case when n <= 800 then 'active' when n % 3 = 0 then 'cancelled' else 'expired' end,
    made.created_at,
    case when n % 4 > 0 then made.created_at + interval '1 year' end,
    made.created_at,
    'user_' || n % 400,
    'pkg_' || md5('package ' || 1 + n * 31 % 2000)::uuid
from generate_series(1, 20000) as n
cross join lateral (
    select date_trunc('month', now(), 'utc') - n * 7919 % 525600 * interval '1 minute'
) as made (created_at);
