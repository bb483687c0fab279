-- Fifty agents for each of 400 users; every seventh is deleted.
insert into agents (id, name, instructions, tools, context, created_at, deleted_at, user_id)
select
    'agnt_' || md5('agent ' || n)::uuid,
    (array['Reviewer', 'writer', 'Translator', 'planner', 'Tester', 'summary', 'Analyst', 'guide'])[1 + n * 31 % 8]
        || ' ' || n % 997,
    repeat('Do this, and then that. ', 2 + n % 12),
    case when n % 3 > 0 then '[{"type": "function", "name": "explain"}]'::jsonb end,
    case when n % 4 = 0 then repeat('Some context. ', 5) end,
    made.created_at,
    case when n % 7 = 0 then made.created_at + interval '3 days' end,
    'user_' || n % 400
from generate_series(1, 20000) as n
cross join lateral (
    select date_trunc('month', now(), 'utc') - n * 7919 % 525600 * interval '1 minute'
) as made (created_at);
