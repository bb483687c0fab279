-- Changes in every month that has a partition, and before. A planner that finds months empty reads them from end to end.
insert into audit_log (
    created_at, actor_user_id, actor_api_key_id, actor_role, request_id, table_name, row_id, user_id, action, old, new,
    transaction_id
)
select
    date_trunc('month', now(), 'utc') - interval '3 months' + n * interval '14 minutes',
    case when n % 20 > 0 then 'user_' || n / 20 % 400 end,
    case when n % 4 > 0 then 'key_' || md5('key ' || n / 20 % 400)::uuid end,
    case when n % 20 > 0 then 'crafely_app' else 'crafely_admin' end,
    case when n % 20 > 0 then md5('request ' || n / 2) end,
    (array['api_keys', 'agents', 'threads', 'user_subscriptions'])[1 + n % 4],
    (array['key_', 'agnt_', 'thrd_', 'sub_'])[1 + n % 4] || md5('row ' || n / 12)::uuid,
    'user_' || n / 20 % 400,
    case when n / 4 % 3 = 0 then 'insert' else 'update' end,
    case when n / 4 % 3 > 0 then '{"name": "before"}'::jsonb end,
    '{"name": "after"}',
    (n / 2 + 1)::text::xid8
from generate_series(1, 20000) as n;
