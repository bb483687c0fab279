-- Usage of month number $1 of twelve (from 0), from $2 to $3: rows number $4 to $5 of $6, in order of time, as they
-- would have come. Of all rows user_0 has $8 and user_1 $9, spread evenly: the same ones however many others there are.
-- The others' rows fall on user_2 to user_$7 in no order.
with numbered as (
    select
        n,
        case
            when n % ($6::bigint / $8::bigint) = 0 then 0
            when n % ($6::bigint / $9::bigint) = 1 then 1
            else 2 + n * 2654435761 % 4294967296 / 65536 % ($7::bigint - 1)
        end as user_number
    from generate_series($4::bigint, $5::bigint) as n
),
placed as (
    select
        n,
        user_number,
        -- Of a user that is measured, the number among its own, and how many these are.
        case user_number
            when 0 then n / ($6::bigint / $8::bigint)
            when 1 then n / ($6::bigint / $9::bigint)
            else n
        end as k,
        case user_number
            when 0 then $8::bigint
            when 1 then $9::bigint
            else $6::bigint
        end as count
    from numbered
)
insert into {aside} (
    id, created_at, api_key_id, user_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost
)
select
    -- As long as a real one, and as ordered.
    concat('use_', lpad(to_hex(n), 8, '0'), '-0000-7000-8000-', lpad(n::text, 12, '0')),
    $2::timestamptz + ($3::timestamptz - $2::timestamptz) * (k * 12::float8 / count - $1::integer),
    concat('key_00000000-0000-4000-8000-', lpad((user_number * 10 + 1)::text, 12, '0')),
    concat('user_', user_number),
    (array['openai', 'anthropic', 'google'])[k % 3 + 1],
    (array['gpt-4o-mini', 'claude-3-5-haiku', 'gemini-2.0-flash'])[k % 3 + 1],
    'chat',
    200 + k % 800,
    50 + k % 300,
    250 + k % 800 + k % 300,
    0.000001 * (1 + k % 5000)
from placed;
