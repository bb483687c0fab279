-- What is known of the keys is audited like any table: a truncate, which fires no row's trigger, leaves a row too.
create trigger encryption_keys_audit_truncate
    after truncate on encryption_keys
    for each statement
    execute function audit_change('encryption_keys');
