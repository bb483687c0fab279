-- sql/audit_log/get.sql
-- One change, with the values of the columns that changed; of anybody's rows, or of one user's.
-- returns: maybe AuditEntry
-- one row: because ids are given by one sequence
-- role: crafely_app, crafely_admin
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
    request_id,
    old,
    new
from audit_log
where audit_log.id = :id::bigint
    and (:user_id::text is null or user_id = :user_id);
