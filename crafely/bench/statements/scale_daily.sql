-- The daily sums of a month that is still aside, in the order in which its days would have brought them.
insert into usage_daily (
    user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
)
select
    user_id, (created_at at time zone 'utc')::date as day, provider, model, type, currency, count(*), sum(tokens_in),
    sum(tokens_out), sum(tokens_total), sum(cost)
from {aside}
group by user_id, day, provider, model, type, currency
order by day, user_id;
