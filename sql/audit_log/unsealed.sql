-- sql/audit_log/unsealed.sql
-- How many rows of the trail no seal covers yet, and when the first of them was written.
-- returns: one Unsealed
-- role: crafely_backup
-- uses: audit_log_transaction_id_id_idx, audit_seals_pkey
with last as (
    select
        case when kind = 'restart' then until_id else since_id end as since_id,
        case when kind = 'restart' then '0' else to_transaction_id end as to_transaction_id,
        case when kind = 'restart' then -9223372036854775808 else to_id end as to_id
    from audit_seals
    order by id desc
    limit 1
),
-- Where nothing is sealed, everything is not.
covered as (
    select since_id, to_transaction_id, to_id
    from last
    union all
    select -9223372036854775808, '0', -9223372036854775808
    where not exists (select from last)
)
select
    count(a.id) as row_count,
    min(a.created_at) as since
from covered c
    join audit_log a
        -- The second half is always true, but a planner sees a range in it.
        on a.transaction_id between c.to_transaction_id and '18446744073709551615'
        and (a.transaction_id, a.id) >= (c.to_transaction_id, c.to_id)
        and a.id >= c.since_id;
