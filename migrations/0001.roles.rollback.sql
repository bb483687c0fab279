-- A role goes only when no other database of this server still grants it something: then it is the last one out.
do $$
declare
    name text;
begin
    foreach name in array array[
        'crafely_app', 'crafely_auth', 'crafely_meter', 'crafely_admin', 'crafely_monitor', 'crafely_backup'
    ] loop
        if exists (select from pg_roles where rolname = name) then
            execute format('revoke all on schema public from %I', name);
            begin
                execute format('drop role %I', name);
            exception
                when dependent_objects_still_exist or object_in_use then
                    raise notice 'role % stays: another database uses it', name;
            end;
        end if;
    end loop;
end
$$;
