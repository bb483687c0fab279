truncate usage, usage_events, usage_daily;
