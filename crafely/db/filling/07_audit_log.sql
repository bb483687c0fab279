-- What is known of the changes of the keys and agents.
insert into audit_log (
    created_at, actor_user_id, actor_role, request_id, table_name, row_id, user_id, action, new
)
select created_at, user_id, 'crafely_app', md5(id), 'agents', id, user_id, 'insert', jsonb_build_object('name', name)
from agents
where created_at >= date_trunc('month', now(), 'utc') - interval '2 months'
union all
select created_at, user_id, 'crafely_app', md5(id), 'api_keys', id, user_id, 'insert', jsonb_build_object('name', name)
from api_keys;
