-- Seventy-five threads for each of 400 users: four of five under an agent of theirs, every ninth deleted.
insert into threads (id, name, storage_id, instructions, model, created_at, deleted_at, user_id, agent_id)
select
    'thrd_' || md5('thread ' || n)::uuid,
    'thread ' || n,
    case when n % 2 = 0 then 'storage/' || md5('storage ' || n) end,
    case when n % 3 = 0 then repeat('Be brief. ', 1 + n % 9) end,
    case when n % 5 > 0 then (array['gpt-4o-mini', 'claude-3-5-haiku', 'gemini-2.0-flash'])[1 + n % 3] end,
    made.created_at,
    case when n % 9 = 0 then made.created_at + interval '3 days' end,
    'user_' || n % 400,
    -- An agent's number that leaves the same rest is the same user's.
    case when n % 5 > 0 then 'agnt_' || md5('agent ' || n % 400 + 400 * (1 + n / 400 * 11 % 47))::uuid end
from generate_series(1, 30000) as n
cross join lateral (
    select date_trunc('month', now(), 'utc') - n * 7919 % 525600 * interval '1 minute'
) as made (created_at);
