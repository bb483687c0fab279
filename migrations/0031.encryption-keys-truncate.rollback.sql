-- A truncate leaves no trace again.
drop trigger encryption_keys_audit_truncate on encryption_keys;
