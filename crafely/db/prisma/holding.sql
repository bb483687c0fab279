-- The tables that hold something of somebody. What a database keeps of itself (the trail, its seals, samples of sizes,
-- ids of encryption keys) does not count.
select h.name
from (
    values
    ('packages', exists (select from packages)),
    ('api_keys', exists (select from api_keys)),
    ('agents', exists (select from agents)),
    ('threads', exists (select from threads)),
    ('user_subscriptions', exists (select from user_subscriptions)),
    ('usage', exists (select from usage)),
    ('usage_daily', exists (select from usage_daily)),
    ('usage_events', exists (select from usage_events)),
    ('idempotency_keys', exists (select from idempotency_keys))
) as h (name, is_so)
where h.is_so;
