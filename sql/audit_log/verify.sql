-- sql/audit_log/verify.sql
-- The seals after one, in order, each held against the seal before it and against the rows that it covers. All is
-- computed anew from the rows, and nothing here asks a function of the database that somebody may have changed.
-- Of a dropped month no rows are left. What a seal covers: migrations/0028.audit-seals.sql.
-- returns: many Verified
-- role: crafely_backup
-- uses: audit_seals_pkey, audit_seals_kind_id_idx, audit_log_transaction_id_id_idx
-- not null: follows
with chain as (
    select
        id, created_at, kind, system_identifier, since_id, until_id, from_transaction_id, from_id, to_transaction_id,
        to_id, month, row_count, row_ids, row_checks, row_digest, digest,
        lag(id) over following as last_id,
        lag(digest) over following as last_digest,
        -- Where this one must begin.
        case
            when lag(kind) over following = 'restart' then lag(until_id) over following
            else lag(since_id) over following
        end as next_since_id,
        case
            when lag(kind) over following = 'restart' then '0'
            else lag(to_transaction_id) over following
        end as next_transaction_id,
        case
            when lag(kind) over following = 'restart' then -9223372036854775808
            else lag(to_id) over following
        end as next_id
    from (
        select
            id, created_at, kind, system_identifier, since_id, until_id, from_transaction_id, from_id,
            to_transaction_id, to_id, month, row_count, row_ids, row_checks, row_digest, digest
        from audit_seals
        where id >= :after_id
        order by id
        limit :take::bigint + 1
    ) as those
    window following as (order by id)
)
select
    s.id,
    s.kind,
    s.month,
    encode(s.digest, 'hex') as digest,
    s.last_id,
    -- Whether the seal is as it was made, after the one before it: its digest, and where it begins.
    s.digest = sha256(convert_to(json_build_array(
        encode(s.last_digest, 'hex'), s.id, encode(timestamptz_send(s.created_at), 'hex'), s.kind, s.system_identifier,
        s.since_id, s.until_id, s.from_transaction_id::text, s.from_id, s.to_transaction_id::text, s.to_id,
        encode(date_send(s.month), 'hex'), s.row_count, s.row_ids::text, encode(s.row_checks, 'hex'),
        encode(s.row_digest, 'hex')
    )::text, 'UTF8'))
        and (s.since_id, s.from_transaction_id, s.from_id) = (
            coalesce(s.next_since_id, -9223372036854775808),
            coalesce(s.next_transaction_id, '0'),
            coalesce(s.next_id, -9223372036854775808)
        ) as follows,
    case when g.is_dropped then 0 else s.row_count end as row_count,
    rows.found,
    -- Whether the rows are those that were sealed, to the last bit.
    rows.digest = case when g.is_dropped then sha256('') else s.row_digest end as rows_match
from chain s
    cross join lateral (
        select
            (
                select r.until_id
                from audit_seals r
                where r.kind = 'restart'
                    and r.id >= s.id
                order by r.id
                limit 1
            ) as until_id,
            s.kind = 'batch' and exists (
                select
                from audit_seals d
                where d.kind = 'drop'
                    and d.id > s.id
                    and d.month = s.month
            ) as is_dropped
    ) as g
    cross join lateral (
        select
            count(*)::integer as found,
            sha256(coalesce(string_agg(sha256(convert_to(json_build_array(
                a.id, encode(timestamptz_send(a.created_at), 'hex'), a.transaction_id::text, a.actor_user_id,
                a.actor_api_key_id, a.actor_role, a.request_id, a.table_name, a.row_id, a.user_id, a.action,
                a.old::text, a.new::text
            )::text, 'UTF8')), '' order by a.id), '')) as digest
        from audit_log a
        -- Says nothing that the next lines do not, but a planner sees a range in it.
        where a.transaction_id between s.from_transaction_id and s.to_transaction_id
            and (a.transaction_id, a.id) >= (s.from_transaction_id, s.from_id)
            and (a.transaction_id, a.id) < (s.to_transaction_id, s.to_id)
            and a.id >= s.since_id
            and (g.until_id is null or a.id < g.until_id)
    ) as rows
where s.id > :after_id
order by s.id;
