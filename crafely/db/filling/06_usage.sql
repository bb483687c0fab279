-- The sums of the three years before, whose records are gone.
insert into usage_daily (
    user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
)
select
    'user_' || n % 400, (date_trunc('month', now(), 'utc') at time zone 'utc')::date - 100 - n / 25, 'openai',
    'gpt-4o-mini', 'chat', 'usd', 1 + n % 50, n % 5000, n % 900, n % 5000 + n % 900, 0.000001 * n
from generate_series(1, 25000) as n
order by n desc;

-- Usage in every month that has a partition, and before, with the ledger of its events and its sums by day. A planner
-- that finds months empty reads them from end to end.
insert into usage (
    id, created_at, api_key_id, user_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency,
    metadata, event_id
)
select
    'use_' || md5('usage ' || n)::uuid,
    date_trunc('month', now(), 'utc') - interval '3 months' + n * interval '7 minutes',
    'key_' || md5('key ' || n / 40 % 400 + 400 * (1 + n * 11 % 47))::uuid,
    'user_' || n / 40 % 400,
    case when n % 20 > 0 then (array['openai', 'anthropic', 'google'])[1 + n % 3] end,
    case when n % 20 > 0 then (array['gpt-4o-mini', 'claude-3-5-haiku', 'gemini-2.0-flash'])[1 + n % 3] end,
    case when n % 11 > 0 then (array['chat', 'chat', 'embeddings', 'image'])[1 + n % 4] end,
    case when n % 13 > 0 then 100 + n * 7919 % 5000 end,
    case when n % 17 > 0 then 50 + n * 7907 % 900 end,
    case when n % 13 > 0 and n % 17 > 0 then 150 + n * 7919 % 5000 + n * 7907 % 900 end,
    case when n % 19 > 0 then 0.000001 * (1 + n * 7919 % 5000) end,
    case when n % 50 = 0 then 'eur' else 'usd' end,
    case when n % 6 = 0 then '{"trace": "a"}'::jsonb end,
    case when n % 3 = 0 then 'event ' || n end
from generate_series(1, 40000) as n;

insert into usage_events (user_id, event_id, usage_id, created_at)
select user_id, event_id, id, created_at
from usage
where event_id is not null
order by created_at;

insert into usage_daily (
    user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
)
select
    user_id, (created_at at time zone 'utc')::date as day, provider, model, type, currency, count(*),
    coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0), coalesce(sum(tokens_total), 0), coalesce(sum(cost), 0)
from usage
group by user_id, day, provider, model, type, currency
order by day, user_id;
