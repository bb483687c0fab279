-- sql/user_subscriptions/rate_limits.sql
-- The largest rate limit among the packages that each of these users has now, for any user; no row for one whose
-- packages say nothing of it.
-- returns: many UserRateLimit
-- role: crafely_auth
-- uses: user_subscriptions_user_id_package_id_idx, packages_pkey
select s.user_id, max(p.rate_limit) as rate_limit
from unnest(:user_ids::text[]) as asked (user_id)
join user_subscriptions s on s.user_id = asked.user_id
join packages p on p.id = s.package_id
where s.status = 'active'
    and s.start_date <= now()
    and (s.end_date is null or s.end_date > now())
    and p.rate_limit is not null
group by s.user_id;
