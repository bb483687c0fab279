-- GET /v1/audit-log: what one request did, and what one user did, to whomever. The history of a row, the changes of one
-- user's rows and all there is have their indexes already. (One on created_at alone would tempt a planner, to whom a
-- range of unknown times looks short, away from the others.)
-- (No index of a partitioned table is made concurrently: writers wait while it is built.)
-- squawk-ignore require-concurrent-index-creation
create index audit_log_request_id_idx on audit_log (request_id);

-- squawk-ignore require-concurrent-index-creation
create index audit_log_actor_user_id_created_at_id_idx on audit_log (actor_user_id, created_at desc, id desc);
