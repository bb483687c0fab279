-- crafely_monitor was made a member of pg_monitor, but as a role that does not inherit, like all of ours: it would have
-- to set role to pg_monitor first, and so saw none of the statistics that the membership is for. Now it has them. Roles
-- are the whole server's: another database may have seen to it already.
do $$
begin
    if pg_has_role('crafely_monitor', 'pg_monitor', 'usage') then
        return;
    end if;
    if current_setting('server_version_num')::int >= 160000 then
        execute 'grant pg_monitor to crafely_monitor with inherit true';
    else
        -- Of nothing else is it a member.
        grant pg_monitor to crafely_monitor;
        alter role crafely_monitor inherit;
    end if;
exception
    when insufficient_privilege then
        raise warning 'crafely monitor sees little until a superuser runs: grant pg_monitor to crafely_monitor%',
            case when current_setting('server_version_num')::int >= 160000 then ' with inherit true'
                else '; alter role crafely_monitor inherit' end;
end
$$;
