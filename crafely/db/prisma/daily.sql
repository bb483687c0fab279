-- The daily sums of all usage, as sql/usage/record.sql would have kept them.
insert into usage_daily (
    user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
)
select
    u.user_id,
    (u.created_at at time zone 'utc')::date as day,
    u.provider,
    u.model,
    u.type,
    u.currency,
    count(*),
    coalesce(sum(u.tokens_in), 0),
    coalesce(sum(u.tokens_out), 0),
    coalesce(sum(u.tokens_total), 0),
    coalesce(sum(u.cost), 0)
from usage as u
group by 1, 2, 3, 4, 5, 6;
