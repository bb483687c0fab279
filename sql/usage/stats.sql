-- sql/usage/stats.sql
-- Sums of the user's usage from a time (included) to a time (excluded), grouped by the named columns, and always by
-- currency, since sums of different currencies mean nothing. Whole days come from usage_daily; only what the range cuts
-- off a day at either end is read from usage, so a year costs hardly more than a day.
-- returns: many UsageStats
-- reads: replica
-- uses: usage_daily_user_id_day_provider_model_type_currency_key, usage_user_id_created_at_id_idx
with whole_days as (
    -- The first midnight (UTC) from :from_time on, and the last one until :to_time. Inside one day the first is later.
    select
        date_trunc('day', :from_time::timestamptz + interval '1 day' - interval '1 microsecond', 'utc') as first,
        date_trunc('day', :to_time::timestamptz, 'utc') as last
),
parts as (
    select day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
    from usage_daily
    where user_id = :user_id
        and day >= (select (first at time zone 'utc')::date from whole_days)
        and day < (select (last at time zone 'utc')::date from whole_days)
    union all
    select
        (created_at at time zone 'utc')::date, provider, model, type, currency, 1, coalesce(tokens_in, 0),
        coalesce(tokens_out, 0), coalesce(tokens_total, 0), coalesce(cost, 0)
    from usage
    where user_id = :user_id
        and created_at >= :from_time
        and created_at < (select least(first, :to_time) from whole_days)
    union all
    select
        (created_at at time zone 'utc')::date, provider, model, type, currency, 1, coalesce(tokens_in, 0),
        coalesce(tokens_out, 0), coalesce(tokens_total, 0), coalesce(cost, 0)
    from usage
    where user_id = :user_id
        and created_at >= (select greatest(first, last) from whole_days)
        and created_at < :to_time
)
select
    case when 'day' = any(:group_by::text[]) then day end as day,
    case when 'provider' = any(:group_by::text[]) then provider end as provider,
    case when 'model' = any(:group_by::text[]) then model end as model,
    case when 'type' = any(:group_by::text[]) then type end as type,
    currency,
    sum(records)::bigint as records,
    sum(tokens_in)::bigint as tokens_in,
    sum(tokens_out)::bigint as tokens_out,
    sum(tokens_total)::bigint as tokens_total,
    sum(cost) as cost
from parts
group by 1, 2, 3, 4, 5
order by 1 desc nulls last, 2, 3, 4, 5
limit :take
offset :skip;
