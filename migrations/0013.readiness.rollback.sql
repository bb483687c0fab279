-- A process that serves meanwhile says that it is not ready, which is true.
do $$
begin
    if to_regclass('_yoyo_migration') is not null then
        revoke select on _yoyo_migration from crafely_admin;
    end if;
end
$$;
