-- Backups cannot be made any more.
do $$
begin
    if to_regclass('_yoyo_migration') is not null then
        revoke select on _yoyo_migration from crafely_backup;
    end if;
end
$$;
