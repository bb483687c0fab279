-- The daily sums are stamped by the statement that adds to them: of all triggers this one ran most, for each group of
-- each batch of usage, and its function is interpreted. It still stamps every other change, and a stamp that is not
-- this very moment's: what no client could forget or forge before, it cannot now.
create or replace trigger usage_daily_set_updated_at
    before update on usage_daily
    for each row
    when (new.updated_at is distinct from now())
    execute function set_updated_at();

grant update (updated_at) on usage_daily to crafely_app, crafely_meter;
