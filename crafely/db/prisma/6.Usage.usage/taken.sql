-- Usage, as the source has it.
select
    id,
    created_at at time zone 'utc' as created_at,
    api_key_id,
    user_id,
    provider,
    model,
    type,
    tokens_in,
    tokens_out,
    tokens_total,
    cost::numeric(10, 6) as cost,
    currency,
    metadata
from usage
