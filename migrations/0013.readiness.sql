-- A serving process answers /readyz by comparing its migrations with those applied, so one role may read that table of
-- the migration tool: it holds file names, checksums and times. Without the tool (psql alone) there is no such table.
do $$
begin
    if to_regclass('_yoyo_migration') is not null then
        grant select on _yoyo_migration to crafely_admin;
    end if;
end
$$;
