-- A source of any size: {keys} keys of a tenth as many users, as many agents and half as many threads as there are
-- users, and {records} records of usage over four months. The same rows each time.
insert into "Package" ("id", "name", "description", "price", "features", "interval", "updatedAt")
select
    'pkg_' || n,
    'Plan ' || n,
    case when n % 2 = 0 then 'Line one,' || chr(10) || 'tab' || chr(9) || 'and \ "quotes"' end,
    n * 9.99,
    case when n % 3 > 0 then (array['a', 'b c', '"'])[1:n % 3 + 1] end,
    case when n % 5 = 0 then 'year' else 'month' end,
    '2024-01-01'
from generate_series(1, 20) as n;

insert into "ApiKey" (
    "id", "keyId", "hashedKey", "name", "prefix", "permissions", "active", "createdAt", "updatedAt", "lastUsedAt",
    "userId"
)
select
    'key_' || n,
    case when n % 10 = 0 then lpad(n::text, 16, '0') else 'pk-' || n end,
    case
        when n % 10 = 0 then '$argon2id$v=19$m=8192,t=1,p=1$c29tZXNhbHQ$aGFzaA'
        else '$2b$10$' || md5(n::text)
    end,
    case when n % 7 > 0 then 'key ' || n || ' ünï' end,
    case when n % 2 = 0 then 'pk-' end,
    case when n % 4 > 0 then (array['chat', 'agents:read'])[1:n % 3] end,
    n % 11 > 0,
    '2024-01-01'::timestamp + n % 100000 * interval '1 second 7 milliseconds',
    '2024-06-01',
    case when n % 3 = 0 then '2024-06-01 12:00:00.123'::timestamp end,
    'user_' || n / 10
from generate_series(1, {keys}) as n;

insert into "Agent" ("id", "name", "instructions", "tools", "context", "updatedAt", "deletedAt", "userId")
select
    'agnt_' || n,
    'Agent ' || n,
    case when n % 9 = 0 then '' else repeat('Review. \ ' || chr(10), n % 50) end,
    case when n % 2 = 0 then '[{"name": "t\u00e9", "n": 1.50, "e": 1e2, "b": 12345678901234567890}]' end,
    case when n % 3 = 0 then 'crafely:1:a context that looks sealed' end,
    '2024-06-01',
    case when n % 5 = 0 then '2024-07-01'::timestamp end,
    'user_' || n
from generate_series(0, {keys} / 10) as n;

insert into "Thread" ("id", "name", "storageId", "instructions", "model", "updatedAt", "userId", "agentId")
select
    'thrd_' || n,
    'Thread ' || n,
    case when n % 2 = 0 then 'store-' || n end,
    case when n % 3 = 0 then 'Be brief.' end,
    case when n % 4 = 0 then 'gpt-4' end,
    '2024-06-01',
    'user_' || n,
    case when n % 3 > 0 then 'agnt_' || n end
from generate_series(0, {keys} / 20) as n;

insert into "UserSubscription" ("id", "status", "startDate", "endDate", "createdAt", "updatedAt", "userId", "packageId")
select
    'sub_' || n,
    (array['active', 'cancelled', 'expired'])[n % 3 + 1],
    '2024-01-01',
    case when n % 3 > 0 then '2024-02-01'::timestamp end,
    '2024-01-01',
    '2024-01-01',
    'user_' || n,
    'pkg_' || n % 20 + 1
from generate_series(0, {keys} / 10) as n;

insert into "Usage" (
    "id", "createdAt", "apiKeyId", "userId", "provider", "model", "type", "tokensIn", "tokensOut", "tokensTotal",
    "cost", "currency", "metadata"
)
select
    'use_' || md5(n::text)::uuid,
    '2024-03-15'::timestamp + n * (interval '100 days' / {records}),
    'key_' || k,
    'user_' || k / 10,
    case when n % 20 > 0 then 'openai' end,
    (array['gpt-4', 'gpt-4o-mini', 'o1', null])[n % 4 + 1],
    case when n % 3 > 0 then 'chat' end,
    n % 1000,
    case when n % 5 > 0 then n % 300 end,
    n % 1300,
    case when n % 6 > 0 then (n % 99991) / 1000000.0 end,
    case when n % 50 > 0 then 'usd' end,
    case when n % 10 = 0 then jsonb_build_object('n', n, 'text', 'a\b') end
from generate_series(1, {records}) as n
cross join lateral (select n % {keys} + 1 as k) as key;
