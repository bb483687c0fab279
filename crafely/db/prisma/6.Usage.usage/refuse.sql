-- A number that is none is greater than any other, so the table's own check lets it pass.
insert into crafely_import.refused (table_name, id, column_name, rule)
select 'Usage', s.id, r.column_name, r.rule
from crafely_import.usage as s
left join api_keys as k on k.id = s.api_key_id and k.user_id = s.user_id
cross join lateral (
    values
    ('id', 'expected 1 to 255 characters', s.id = ''),
    ('apiKeyId', 'expected a key of the same user that was taken', k.id is null),
    ('provider', 'expected 1 to 255 characters or null', length(s.provider) not between 1 and 255),
    ('model', 'expected 1 to 255 characters or null', length(s.model) not between 1 and 255),
    ('type', 'expected 1 to 255 characters or null', length(s.type) not between 1 and 255),
    ('tokensIn', 'expected 0 or more, or null', s.tokens_in < 0),
    ('tokensOut', 'expected 0 or more, or null', s.tokens_out < 0),
    ('tokensTotal', 'expected 0 or more, or null', s.tokens_total < 0),
    ('cost', 'expected 0 or more, or null', s.cost < 0 or s.cost = 'nan'),
    ('currency', 'expected three lowercase letters or null', s.currency !~ '^[a-z]{3}$'),
    ('metadata', 'expected a JSON object or null', jsonb_typeof(s.metadata) <> 'object'),
    ('createdAt', 'expected a time in the years 1 to 9998', s.created_at not between '0001-01-01' and '9998-12-31')
) as r (column_name, rule, is_broken)
where r.is_broken;
