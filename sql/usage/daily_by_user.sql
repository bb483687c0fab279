-- sql/usage/daily_by_user.sql
-- Every user's usage by UTC day, newest day first, from a day (included) to a day (excluded), for administrators.
-- returns: many DailyUsageByUser
-- role: crafely_admin
-- reads: replica
-- across users: because administrators see the sums of everybody
-- uses: usage_daily_day_user_id_idx
select
    user_id,
    day,
    currency,
    sum(records)::bigint as records,
    sum(tokens_in)::bigint as tokens_in,
    sum(tokens_out)::bigint as tokens_out,
    sum(tokens_total)::bigint as tokens_total,
    sum(cost) as cost
from usage_daily
where day >= :from_day
    and day < :to_day
group by user_id, day, currency
order by day desc, user_id, currency
limit :take
offset :skip;
