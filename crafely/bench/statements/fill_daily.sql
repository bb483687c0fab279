-- Daily sums as they come to be: day by day, all users of the day, four groups each.
insert into usage_daily (
    user_id, day, provider, model, type, currency, records, tokens_in, tokens_out, tokens_total, cost
)
select
    format('user_%s', u), date '2026-01-01' + d, 'openai', format('gpt-4o-mini-%s', g), 'chat', 'usd', 10, 4000, 2000,
    6000, 0.0015
from
    generate_series(1, 10) as d,
    generate_series(1, 500) as u,
    generate_series(1, 4) as g
order by d, u, g;
