-- A login with no other role can then no longer run these commands.
do $$
begin
    if to_regclass('_yoyo_migration') is not null then
        revoke select on _yoyo_migration from crafely_monitor, crafely_encryption;
    end if;
end
$$;
