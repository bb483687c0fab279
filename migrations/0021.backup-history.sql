-- A backup holds the rows and says which migrations they fit, so the role that reads everything for it may read that
-- table of the migration tool, too. Without the tool (psql alone) there is no such table.
do $$
begin
    if to_regclass('_yoyo_migration') is not null then
        grant select on _yoyo_migration to crafely_backup;
    end if;
end
$$;
