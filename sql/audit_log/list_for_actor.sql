-- sql/audit_log/list_for_actor.sql
-- What one user changed, newest first, from a position on, since a time.
-- Of the other conditions null ones are none.
-- returns: many AuditChange
-- role: crafely_admin
-- reads: replica
-- uses: audit_log_actor_user_id_created_at_id_idx
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
where actor_user_id = :actor_user_id
    and created_at >= :from_time
    -- Says nothing that the next line does not, but months are left out by it.
    and created_at <= :before
    and (created_at, audit_log.id) < (:before, :before_id::bigint)
    and (:table_name::text is null or table_name = :table_name)
    and (:row_id::text is null or row_id = :row_id)
    and (:action::text is null or action = :action)
    and (:request_id::text is null or request_id = :request_id)
order by created_at desc, audit_log.id desc
limit :take
offset :skip;
