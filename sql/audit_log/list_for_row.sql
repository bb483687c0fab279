-- sql/audit_log/list_for_row.sql
-- The history of one row, newest first, from a position on, since a time; whoever's it is, or one user's.
-- Of the other conditions null ones are none.
-- returns: many AuditChange
-- role: crafely_admin
-- reads: replica
-- uses: audit_log_table_name_row_id_created_at_idx
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
where table_name = :table_name
    and row_id = :row_id
    and created_at >= :from_time
    and (created_at, audit_log.id) < (:before, :before_id::bigint)
    and (:user_id::text is null or user_id = :user_id)
    and (:action::text is null or action = :action)
    and (:actor_user_id::text is null or actor_user_id = :actor_user_id)
    and (:request_id::text is null or request_id = :request_id)
order by created_at desc, audit_log.id desc
limit :take
offset :skip;
