-- sql/usage/record.sql
-- Records usage: an array of records in, one line for each out, in order. In one statement, so in one transaction: the
-- ledger of event ids, the rows themselves, and the daily sums. A record against a key that is not its user's, or one
-- whose event was counted before, is not counted and says so; it does not hinder the others.
-- returns: many Recorded
-- role: crafely_meter, crafely_app
-- uses: api_keys_user_id_id_key, usage_events_pkey
with call as materialized (
    select
        lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0') as time,
        gen_random_uuid()::text as random
),
input as materialized (
    select
        r.position,
        -- A UUID of version 7: time, then random bits, the same for the whole call, then the position. Such ids follow
        -- each other, so the rows of a call go into one page of the index; and randomness is dear where the server
        -- opens /dev/urandom for each of them. Measured with 400,000 rows, a thousand a call, PostgreSQL 18: bytes
        -- of the index, and of the log, for each row: 69 and 218, at 115,000 rows/s. With the server's own uuidv7(), of
        -- which each is random anew: 77 and 234, at 56,000. With random ids: 100 and 273, at 37,000.
        concat(
            'use_', left(c.time, 8), '-', right(c.time, 4), '-7', substr(c.random, 16, 16),
            lpad(to_hex(r.position), 5, '0')
        ) as id,
        coalesce(r.created_at, now()) as created_at,
        r.user_id, r.api_key_id, r.provider, r.model, r.type, r.tokens_in, r.tokens_out, r.tokens_total, r.cost,
        r.currency, r.metadata, r.event_id,
        -- Not «exists»: that may be planned as one reading of all keys, in each call.
        (
            select k.id
            from api_keys k
            where k.id = r.api_key_id
                and k.user_id = r.user_id
        ) is not null as has_key
    from rows from (
        jsonb_to_recordset(:records::jsonb) as (
            user_id text, api_key_id text, created_at timestamptz, provider text, model text, type text,
            tokens_in integer, tokens_out integer, tokens_total integer, cost numeric, currency text,
            metadata jsonb, event_id text
        )
    ) with ordinality as r (
        user_id, api_key_id, created_at, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency,
        metadata, event_id, position
    )
    cross join call c
),
-- Sorted, as are the rows (their keys are locked in that order) and the sums below: two workers that touch the same
-- ones then wait for each other and never in a circle.
ledger as (
    insert into usage_events (user_id, event_id, usage_id)
    select distinct on (user_id, event_id) user_id, event_id, id
    from input
    where has_key
        and event_id is not null
    order by user_id, event_id, position
    on conflict (user_id, event_id) do nothing
    returning user_id, event_id, usage_id
),
counted as materialized (
    select
        i.position, i.id, i.created_at, i.user_id, i.api_key_id, i.provider, i.model, i.type, i.tokens_in, i.tokens_out,
        i.tokens_total, i.cost, i.currency, i.metadata, i.event_id
    from input i
    where i.has_key
        and (i.event_id is null or i.id in (select usage_id from ledger))
),
inserted as (
    insert into usage (
        id, created_at, api_key_id, user_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency,
        metadata, event_id
    )
    select
        id, created_at, api_key_id, user_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency,
        metadata, event_id
    from counted
    order by user_id, api_key_id, position
),
summed as (
    insert into usage_daily (
        user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
    )
    select
        user_id, (created_at at time zone 'utc')::date as day, provider, model, type, currency, count(*),
        coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0), coalesce(sum(tokens_total), 0),
        coalesce(sum(cost), 0)
    from counted
    group by user_id, day, provider, model, type, currency
    order by user_id, day, provider, model, type, currency
    on conflict (user_id, day, provider, model, type, currency) do update
    set records = usage_daily.records + excluded.records,
        tokens_in = usage_daily.tokens_in + excluded.tokens_in,
        tokens_out = usage_daily.tokens_out + excluded.tokens_out,
        tokens_total = usage_daily.tokens_total + excluded.tokens_total,
        cost = usage_daily.cost + excluded.cost,
        -- As the trigger would, which has nothing to do then.
        updated_at = now()
)
select
    case
        when not i.has_key then 'unknown_key'
        when i.event_id is null or i.id = l.usage_id then 'recorded'
        else 'duplicate'
    end as status,
    -- Of a duplicate, the id that was recorded: in this call (ledger) or before it. The latter is looked up for
    -- duplicates alone; as a join it would be planned once for all calls, and may read the whole ledger in each.
    case
        when not i.has_key then null
        when i.event_id is null then i.id
        when l.usage_id is not null then l.usage_id
        else (
            select e.usage_id
            from usage_events e
            where e.user_id = i.user_id
                and e.event_id = i.event_id
        )
    end as id
from input i
left join ledger l on l.user_id = i.user_id and l.event_id = i.event_id
order by i.position;
