-- Changes of keys are told no more: a process that serves believes what it remembers until its time is up.
drop trigger api_keys_notify_truncated on api_keys;
drop function notify_api_keys_truncated();
drop trigger api_keys_notify on api_keys;
drop function notify_api_key_change();
