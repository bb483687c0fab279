insert into usage (
    id, created_at, api_key_id, user_id, provider, model, type, tokens_in, tokens_out, tokens_total, cost, currency,
    metadata
)
select
    s.id,
    s.created_at at time zone 'utc',
    s.api_key_id,
    s.user_id,
    s.provider,
    s.model,
    s.type,
    s.tokens_in,
    s.tokens_out,
    s.tokens_total,
    s.cost,
    s.currency,
    s.metadata
from crafely_import.usage as s
where not exists (
    select
    from crafely_import.refused as r
    where r.table_name = 'Usage'
        and r.id = s.id
);
