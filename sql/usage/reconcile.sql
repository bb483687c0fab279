-- sql/usage/reconcile.sql
-- Where the daily sums are not what the records add up to, from a day (included) to a day (excluded), of one user; null
-- leaves the range open, or takes all users. Both sides are read in one statement, so of one moment, while others go on
-- writing. A side that lacks the group altogether is null. Sums whose records went with their month are right.
-- returns: many Difference
-- role: crafely_backup
-- across users: because one user is the exception
-- uses: usage_daily_day_user_id_idx
-- scans: usage, because each record of the range is added up anew
-- scans: usage_drops, because it has a row for a month, and each is compared
with sides as (
    select
        false as is_daily,
        user_id, (created_at at time zone 'utc')::date as day, provider, model, type, currency,
        count(*) as records,
        coalesce(sum(tokens_in), 0) as tokens_in,
        coalesce(sum(tokens_out), 0) as tokens_out,
        coalesce(sum(tokens_total), 0) as tokens_total,
        coalesce(sum(cost), 0) as cost
    from usage
    where created_at >= coalesce(:from_day::date, '-infinity')::timestamp at time zone 'utc'
        and created_at < coalesce(:to_day::date, 'infinity')::timestamp at time zone 'utc'
        and (:user_id::text is null or user_id = :user_id)
    group by user_id, (created_at at time zone 'utc')::date, provider, model, type, currency
    union all
    select true, user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
    from usage_daily
    where day >= coalesce(:from_day::date, '-infinity')
        and day < coalesce(:to_day::date, 'infinity')
        and (:user_id::text is null or user_id = :user_id)
),
-- Grouped, and not joined: groups take two nulls as the same, which a full join cannot.
compared as (
    select
        user_id, day, provider, model, type, currency,
        sum(records) filter (where not is_daily) as raw_records,
        sum(records) filter (where is_daily) as daily_records,
        sum(tokens_in) filter (where not is_daily) as raw_tokens_in,
        sum(tokens_in) filter (where is_daily) as daily_tokens_in,
        sum(tokens_out) filter (where not is_daily) as raw_tokens_out,
        sum(tokens_out) filter (where is_daily) as daily_tokens_out,
        sum(tokens_total) filter (where not is_daily) as raw_tokens_total,
        sum(tokens_total) filter (where is_daily) as daily_tokens_total,
        sum(cost) filter (where not is_daily) as raw_cost,
        sum(cost) filter (where is_daily) as daily_cost
    from sides
    group by user_id, day, provider, model, type, currency
)
select
    day, user_id, provider, model, type, currency,
    raw_records::bigint, daily_records::bigint,
    raw_tokens_in::bigint, daily_tokens_in::bigint,
    raw_tokens_out::bigint, daily_tokens_out::bigint,
    raw_tokens_total::bigint, daily_tokens_total::bigint,
    raw_cost, daily_cost
from compared
where (raw_records, raw_tokens_in, raw_tokens_out, raw_tokens_total, raw_cost)
    is distinct from (daily_records, daily_tokens_in, daily_tokens_out, daily_tokens_total, daily_cost)
    and (
        raw_records is not null
        or not exists (
            select
            from usage_drops d
            where d.month = date_trunc('month', day::timestamp)::date
        )
    )
order by day, user_id, provider, model, type, currency
limit :take;
