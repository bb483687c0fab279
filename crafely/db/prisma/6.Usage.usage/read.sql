-- Usage.
select
    s.ctid as place,
    s."id" as id,
    s."createdAt" as created_at,
    s."apiKeyId" as api_key_id,
    s."userId" as user_id,
    s."provider" as provider,
    s."model" as model,
    s."type" as type,
    s."tokensIn" as tokens_in,
    s."tokensOut" as tokens_out,
    s."tokensTotal" as tokens_total,
    s."cost" as cost,
    s."currency" as currency,
    s."metadata" as metadata
from "Usage" as s
