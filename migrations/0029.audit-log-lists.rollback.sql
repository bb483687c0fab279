-- Lists of the trail read all of it again.
drop index audit_log_actor_user_id_created_at_id_idx;
drop index audit_log_request_id_idx;
