-- Fifty keys for each of 400 users: some revoked, some expired, some never used, some that replace another.
insert into api_keys (
    id, key_id, hashed_key, name, prefix, permissions, active, created_at, last_used_at, user_id, expires_at,
    rotated_from, rate_limit
)
select
    'key_' || md5('key ' || n)::uuid,
    left(md5('public ' || n), 16),
    '$argon2id$v=19$m=8192,t=1,p=1$' || left(md5('salt ' || n), 22) || '$' || md5('hash ' || n) || left(md5('h' || n), 11),
    case when n % 6 > 0 then 'key ' || n end,
    'crf_live_' || left(md5('public ' || n), 4),
    case when n % 3 = 0 then array['*'] else array['agents:read', 'threads:read', 'usage:write'] end,
    n % 5 > 0,
    made.created_at,
    case when n % 10 > 2 then made.created_at + n % 20 * interval '1 day' end,
    'user_' || n % 400,
    case when n % 7 = 0 then made.created_at + interval '90 days' end,
    case when n > 400 and n % 25 = 0 then 'key_' || md5('key ' || n - 400)::uuid end,
    case when n % 9 = 0 then 60 * (1 + n % 10) end
from generate_series(1, 20000) as n
cross join lateral (
    select date_trunc('month', now(), 'utc') - n * 7919 % 525600 * interval '1 minute'
) as made (created_at);
