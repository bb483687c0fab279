-- Every command first looks whether the database has the migrations of its release, with the rights of a role that it
-- works as: so the desk's and the one that rotates encryption keys may read that table, too.
do $$
begin
    if to_regclass('_yoyo_migration') is not null then
        grant select on _yoyo_migration to crafely_monitor, crafely_encryption;
    end if;
end
$$;
