-- Has the trigger stamp every change again; nothing is lost.
revoke update (updated_at) on usage_daily from crafely_app, crafely_meter;

create or replace trigger usage_daily_set_updated_at
    before update on usage_daily
    for each row
    execute function set_updated_at();
