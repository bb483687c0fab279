-- sql/audit_log/compare.sql
-- The rows of one batch that are not as they were sealed, by id: altered, removed or inserted. The seal itself must be
-- sound. It knows four bytes of each row's digest: one altered row in four thousand millions is not told here, although
-- the seal as a whole tells that there is one.
-- returns: many Harm
-- role: crafely_backup
-- uses: audit_seals_pkey, audit_seals_kind_id_idx, audit_log_transaction_id_id_idx
-- not null: id
with seal as (
    select
        s.since_id, s.from_transaction_id, s.from_id, s.to_transaction_id, s.to_id, s.row_ids, s.row_checks,
        s.row_count,
        (
            select r.until_id
            from audit_seals r
            where r.kind = 'restart'
                and r.id >= s.id
            order by r.id
            limit 1
        ) as until_id,
        exists (
            select
            from audit_seals d
            where d.kind = 'drop'
                and d.id > s.id
                and d.month = s.month
        ) as is_dropped
    from audit_seals s
    where s.id = :id
),
sealed as (
    select
        n.id,
        substr(s.row_checks, (4 * row_number() over (order by n.id) - 3)::integer, 4) as digest
    from seal s
        cross join unnest(s.row_ids) as part
        cross join generate_series(lower(part), upper(part) - 1) as n (id)
    where not s.is_dropped
        -- Of a chain that was made up, the ranges could be without end.
        and s.row_count <= 10000
        and s.row_count = (select sum(upper(p) - lower(p)) from unnest(s.row_ids) as p)
),
found as (
    select
        a.id,
        substr(sha256(convert_to(json_build_array(
            a.id, encode(timestamptz_send(a.created_at), 'hex'), a.transaction_id::text, a.actor_user_id,
            a.actor_api_key_id, a.actor_role, a.request_id, a.table_name, a.row_id, a.user_id, a.action, a.old::text,
            a.new::text
        )::text, 'UTF8')), 1, 4) as digest
    from seal s
        join audit_log a
            -- Says nothing that the next lines do not, but a planner sees a range in it.
            on a.transaction_id between s.from_transaction_id and s.to_transaction_id
            and (a.transaction_id, a.id) >= (s.from_transaction_id, s.from_id)
            and (a.transaction_id, a.id) < (s.to_transaction_id, s.to_id)
            and a.id >= s.since_id
            and (s.until_id is null or a.id < s.until_id)
)
select
    coalesce(w.id, f.id) as id,
    case
        when f.id is null then 'removed'
        when w.id is null then 'inserted'
        else 'altered'
    end as change
from sealed w
    full join found f on f.id = w.id
where w.digest is distinct from f.digest
order by 1
limit :take;
