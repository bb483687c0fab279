-- sql/audit_log/list_all.sql
-- All changes, the last written first, from a position on, from a time (included) to a time (excluded).
-- Of the other conditions null ones are none.
-- returns: many AuditChange
-- role: crafely_admin
-- reads: replica
-- uses: audit_log_pkey
select
    id::text as id,
    created_at,
    user_id,
    table_name,
    row_id,
    action,
    array(select key from jsonb_object_keys(coalesce(new, old)) as key order by key) as columns,
    actor_user_id,
    actor_api_key_id,
    actor_role,
    request_id
from audit_log
where audit_log.id < :before_id::bigint
    and created_at >= :from_time
    and created_at < :to_time
    and (:table_name::text is null or table_name = :table_name)
    and (:row_id::text is null or row_id = :row_id)
    and (:action::text is null or action = :action)
    and (:actor_user_id::text is null or actor_user_id = :actor_user_id)
    and (:request_id::text is null or request_id = :request_id)
order by audit_log.id desc
limit :take
offset :skip;
