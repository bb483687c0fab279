-- Usage of the last 30 days, a thousand records for each user, in order of time. Its daily sums come with it.
with input as (
    select
        n,
        format('user_%s', (n - 1) / 1000) as user_id,
        -- Ten keys for each user, and its records on all of them.
        format('key_00000000-0000-4000-8000-%s', lpad(((n - 1) / 1000 * 10 + n % 10 + 1)::text, 12, '0')) as api_key_id,
        $3::timestamptz - (1000 - (n - 1) % 1000) * interval '30 days' / 1000 as created_at,
        (array['openai', 'anthropic', 'google'])[n % 3 + 1] as provider,
        (array['gpt-4o-mini', 'claude-3-5-haiku', 'gemini-2.0-flash'])[n % 3 + 1] as model,
        (200 + n % 800)::integer as tokens_in,
        (50 + n % 300)::integer as tokens_out,
        0.000001 * (1 + n % 5000) as cost
    from generate_series($1::bigint, $2::bigint) as n
),
inserted as (
    insert into usage (
        id, created_at, api_key_id, user_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost
    )
    select
        format('use_00000000-0000-4000-8000-%s', lpad(n::text, 12, '0')), created_at, api_key_id, user_id, provider,
        model, 'chat', tokens_in, tokens_out, tokens_in + tokens_out, cost
    from input
)
insert into usage_daily (
    user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
)
select
    user_id, (created_at at time zone 'utc')::date as day, provider, model, 'chat', 'usd', count(*), sum(tokens_in),
    sum(tokens_out), sum(tokens_in + tokens_out), sum(cost)
from input
group by user_id, day, provider, model
-- Where the chunk before ended within this user.
on conflict (user_id, day, provider, model, type, currency) do update
set records = usage_daily.records + excluded.records,
    tokens_in = usage_daily.tokens_in + excluded.tokens_in,
    tokens_out = usage_daily.tokens_out + excluded.tokens_out,
    tokens_total = usage_daily.tokens_total + excluded.tokens_total,
    cost = usage_daily.cost + excluded.cost;
