-- A seal of each hour of three months long gone; the last one is a restart, so the whole trail is unsealed.
insert into audit_seals (
    id, created_at, kind, system_identifier, since_id, until_id, from_transaction_id, from_id, to_transaction_id, to_id,
    month, row_count, row_ids, row_checks, row_digest, digest
)
select
    n,
    date_trunc('month', now(), 'utc') - interval '9 months' + n * interval '1 hour',
    case when n % 720 > 0 then 'batch' when n < 2160 then 'drop' else 'restart' end,
    1,
    -2000000,
    case when n = 2160 then 0 end,
    (n * 20)::text::xid8,
    n * 20 - 2000000,
    (n * 20 + 20)::text::xid8,
    n * 20 + 20 - 2000000,
    case
        when n < 2160
        then date_trunc('month', (now() at time zone 'utc')::date - interval '9 months' + n * interval '1 hour')::date
    end,
    20,
    int8multirange(int8range(n * 20 - 2000000, n * 20 + 20 - 2000000)),
    substr(sha256(n::text::bytea) || sha256('more') || sha256('and more'), 1, 80),
    sha256(n::text::bytea),
    sha256(('digest ' || n)::bytea)
from generate_series(1, 2160) as n;
