-- Stops auditing and drops the trail.
drop trigger usage_audit on usage;
drop trigger user_subscriptions_audit on user_subscriptions;
drop trigger packages_audit on packages;
drop trigger threads_audit on threads;
drop trigger agents_audit on agents;
drop trigger api_keys_audit on api_keys;
drop function audit_change();
drop table audit_log;
