-- sql/usage/daily.sql
-- The user's usage by UTC day, newest first, from a day (included) to a day (excluded). A day has a row for each
-- currency.
-- returns: many DailyUsage
-- reads: replica
-- uses: usage_daily_user_id_day_provider_model_type_currency_key
select
    day,
    currency,
    sum(records)::bigint as records,
    sum(tokens_in)::bigint as tokens_in,
    sum(tokens_out)::bigint as tokens_out,
    sum(tokens_total)::bigint as tokens_total,
    sum(cost) as cost
from usage_daily
where user_id = :user_id
    and day >= :from_day
    and day < :to_day
group by day, currency
order by day desc, currency
limit :take
offset :skip;
