-- A day of answers, as housekeeping leaves them.
insert into idempotency_keys (user_id, key, fingerprint, status, location, body, created_at)
select
    'user_' || n % 400,
    md5('request ' || n)::uuid::text,
    md5('body ' || n) || md5('path ' || n),
    201,
    '/v1/agents/agnt_' || md5('agent ' || n)::uuid,
    '{"id":"agnt_' || md5('agent ' || n)::uuid || '","name":"agent","instructions":"' || repeat('word ', n % 90) || '"}',
    date_trunc('month', now(), 'utc') - n * interval '4 seconds'
from generate_series(1, 20000) as n;
